"""The peers: other ways to load SwAV's crops from files in the page cache, each with its best settings."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from perf.images import Jpegs
from perf.interleaved import Contender, Turn, own_cpu_seconds, timed
from pipeline.backends.dali import inverted
from pipeline.crops import Blur, Changes, Crops, View


# ---------------------------------------------------------------------- torchvision
def torchvision(files: list[str], crops: Crops, batch: int, cores: int) -> Contender:
    """The published recipe: a torch DataLoader with a worker process for each core, PIL and torchvision's transforms.

    A turn is a number of epochs with two batches a worker each, from the first request to the last batch, so that no
    work is left over.
    """
    from torch.utils.data import DataLoader, RandomSampler

    dataset: Any = PublishedRecipe(files, crops)
    source = DataLoader(
        dataset,
        batch,
        sampler=RandomSampler(dataset, num_samples=2 * cores * batch),
        num_workers=cores,
        persistent_workers=True,
        multiprocessing_context="spawn",  # this process has threads, and forks of such a process may hang
    )

    def turn(seconds: float) -> Turn:
        images, start, cpu = 0, perf_counter(), own_cpu_seconds()
        while True:
            images += sum(len(views[0]) for views in source)
            taken = perf_counter() - start
            if taken >= seconds:
                return Turn(images, taken, own_cpu_seconds() - cpu)

    return Contender("torchvision", "full", cores, turn)


class PublishedRecipe:
    """A dataset of image files: for each all views as normalized float32 (3, size, size) tensors."""

    def __init__(self, files: list[str], crops: Crops):
        self.files = files
        pairs = zip(crops.views, crops.changes, strict=True)
        self.views = [published_transform(crops, view, own) for view, own in pairs]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Float[Tensor, "3 size size"]]:
        from PIL import Image

        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        return [transform(image) for transform in self.views]


def published_transform(crops: Crops, view: View, own: Changes) -> Any:
    """The augmentation of one view with these changes, with torchvision's operations on PIL images."""
    from torchvision import transforms

    jitter = own.jitter
    strengths = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    turned = transforms.RandomChoice([transforms.RandomRotation((angle, angle)) for angle in (90, 180, 270)])
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(view.size, view.scale, crops.ratio),  # PIL antialiases
            transforms.RandomHorizontalFlip(own.flip),
            transforms.RandomVerticalFlip(own.vertical_flip),
            transforms.RandomApply([turned], own.quarter_turn),
            transforms.RandomApply([transforms.ColorJitter(*strengths), PilGains(jitter.gain)], jitter.probability),
            transforms.RandomGrayscale(own.grayscale),
            PilBlur(own.blur),
            transforms.RandomSolarize(255 * own.solarize.threshold, own.solarize.probability),
            transforms.RandomPosterize(own.posterize.bits, own.posterize.probability),
            transforms.ToTensor(),
            transforms.Normalize(crops.mean, crops.std),
        ]
    )


class PilBlur:
    """Gaussian blur of a PIL image by PIL, with the probability of `blur`."""

    def __init__(self, blur: Blur):
        self.blur = blur

    def __call__(self, image: Any) -> Any:
        from PIL import ImageFilter

        if random.random() >= self.blur.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.blur.sigma)))


class PilGains:
    """A factor for each channel of a PIL image, up to `strength` from 1."""

    def __init__(self, strength: float):
        self.strength = strength

    def __call__(self, image: Any) -> Any:
        from PIL import Image
        from torchvision.transforms.functional import adjust_brightness

        if not self.strength:
            return image
        low, high = max(0.0, 1 - self.strength), 1 + self.strength
        return Image.merge("RGB", [adjust_brightness(band, random.uniform(low, high)) for band in image.split()])


# ---------------------------------------------------------------------- DALI
def dali_random(files: list[str], crops: Crops, batch: int, cores: int) -> Contender:
    """DALI on the CPU with its own reader and random operators; batches become torch tensors without a copy."""
    import torch

    pipeline = random_pipeline(files, crops, batch, cores)

    def batches() -> Iterator[int]:
        while True:
            views = [torch.from_dlpack(view.as_tensor()) for view in pipeline.run()]
            count = len(views[0])
            del views
            yield count

    return Contender("dali-random", "full", cores, lambda seconds: timed(batches(), seconds, skip=4))


def random_pipeline(files: list[str], crops: Crops, batch: int, cores: int) -> Any:
    """DALI's own reader, one decode, then random operators for each view: normalized (batch, size, size, 3) float32."""
    from nvidia.dali import fn, pipeline_def, types

    def coin(probability: float) -> Any:
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    def between(low: float, high: float) -> Any:
        return low if low == high else fn.random.uniform(range=[low, high])  # DALI refuses a range of one number

    def around_one(strength: float) -> Any:
        return between(max(0.0, 1 - strength), 1 + strength)

    pairs = list(zip(crops.views, crops.changes, strict=True))

    @pipeline_def(batch_size=batch, num_threads=cores, device_id=None, prefetch_queue_depth=2, enable_conditionals=True)
    def multi_crop() -> Any:
        encoded, _ = fn.readers.file(files=files, shuffle_after_epoch=True)
        image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        views = []
        for view, own in pairs:
            jitter = own.jitter
            x = fn.random_resized_crop(
                image, size=[view.size, view.size], random_area=view.scale, random_aspect_ratio=crops.ratio
            )
            if coin(jitter.probability):
                x = fn.color_twist(
                    x,
                    brightness=around_one(jitter.brightness),
                    contrast=around_one(jitter.contrast),
                    saturation=around_one(jitter.saturation),
                    hue=between(-360 * jitter.hue, 360 * jitter.hue),  # degrees
                )
                if jitter.gain:
                    gains = fn.random.uniform(range=[max(0.0, 1 - jitter.gain), 1 + jitter.gain], shape=[3])
                    x = fn.cast(x * gains, dtype=types.UINT8)
            if coin(own.grayscale):
                x = fn.saturation(x, saturation=0.0)
            if coin(own.blur.probability):
                x = fn.gaussian_blur(x, sigma=between(*own.blur.sigma))
            if own.solarize.probability > 0 and coin(own.solarize.probability):
                x = inverted(x, 255 * own.solarize.threshold)
            if own.posterize.probability > 0 and coin(own.posterize.probability):
                x = x & types.Constant(256 - 2 ** (8 - own.posterize.bits), types.UINT8)
            if own.vertical_flip:
                x = fn.flip(x, horizontal=0, vertical=fn.random.coin_flip(probability=own.vertical_flip))
            if own.quarter_turn:
                x = turned(x, own.quarter_turn)
            x = fn.crop_mirror_normalize(
                x,
                dtype=types.FLOAT,
                output_layout="HWC",
                mirror=fn.random.coin_flip(probability=own.flip),
                mean=[255 * m for m in crops.mean],
                std=[255 * s for s in crops.std],
            )
            views.append(x)
        return tuple(views)

    pipeline = multi_crop()
    pipeline.build()
    return pipeline


def turned(x: Any, probability: float) -> Any:
    """The node for crops `x`, turned with this probability by 90, 180 or 270 degrees, each as often."""
    from nvidia.dali import fn, types

    quarters = fn.random.uniform(values=[1, 2, 3], dtype=types.INT32)
    if fn.random.coin_flip(probability=probability, dtype=types.BOOL):
        across, down = (fn.cast(quarters != other, dtype=types.INT32) for other in (3, 1))
        x = fn.flip(x, horizontal=across, vertical=down)
        if quarters != 2:
            x = fn.transpose(x, perm=[1, 0, 2], transpose_layout=False)
    return x


# ---------------------------------------------------------------------- FFCV
def ffcv_stock(jpegs: Jpegs, crops: Crops, batch: int, cores: int, folder: Path) -> Contender:
    """FFCV's own loader on a .beton of the same JPEG bytes: one random crop in the size of the first view, not all."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    path, field = write_beton(jpegs, folder)
    view = crops.views[0]
    decoder = RandomResizedCropRGBImageDecoder((view.size, view.size), view.scale, crops.ratio)
    times = -(-100_000 // len(jpegs))  # an epoch outlasts any turn, since FFCV allocates memory in each epoch
    source = Loader(
        str(path),
        batch_size=batch,
        num_workers=cores,
        order=OrderOption.RANDOM,
        os_cache=True,
        indices=np.tile(np.arange(len(jpegs)), times),
        pipelines={"image": [decoder, ToTensor()]},
        custom_fields={"image": field},
    )

    def turn(seconds: float) -> Turn:
        epoch = iter(source)
        try:
            return timed((len(images) for (images,) in epoch), seconds, skip=5)  # FFCV works three batches ahead
        finally:
            epoch.close()

    return Contender("ffcv-stock-one-view", "crops", cores, turn)


def write_beton(jpegs: Jpegs, folder: Path) -> tuple[Path, Any]:
    """Write a .beton in `folder` with FFCV's writer; returns its path, and the field class to read it with."""
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    class SameBytes(RGBImageField):
        """Stores the given JPEG bytes. FFCV's own field would encode the pixels again, to other bytes."""

        def encode(self, destination: Any, image: tuple[np.ndarray, int, int], malloc: Any) -> None:
            encoded, height, width = image
            destination["mode"], destination["height"], destination["width"] = 0, height, width  # mode 0: JPEG
            destination["data_ptr"], room = malloc(encoded.size)
            room[:] = encoded

    path = folder / "images.beton"
    rows = [((image, h, w),) for image, h, w in zip(jpegs.encoded, jpegs.height, jpegs.width, strict=True)]
    with contextlib.redirect_stderr(io.StringIO()):  # hides FFCV's progress bar
        DatasetWriter(str(path), {"image": SameBytes()}, num_workers=1).from_indexed_dataset(rows)
    return path, SameBytes
