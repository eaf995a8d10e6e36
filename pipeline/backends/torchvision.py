"""The torchvision backend: executes the draw with PIL and torchvision, as the published recipe does.

Images with their own channels and depth become tensors in place of PIL images: see native.py.

It is slow and serves as reference: tests compare the other backends with it, and benchmarks measure it as baseline.
Jitter runs step by step with clipping and hue in HSV, as in torchvision's ColorJitter.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.backends.native import native_view
from pipeline.batch import DecodeFailure, Request, group_views
from pipeline.crops import Crops
from pipeline.dataset.images import BadImage, decode, is_decodable
from pipeline.draw import Draw

TURNS = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270  # counterclockwise


class TorchvisionBackend:
    """Executes draws with PIL in `threads` threads; crops are channels-last (N, C, size, size), by default float32."""

    def __init__(
        self,
        crops: Crops,
        batch_size: int,
        threads: int,
        device_id: int | None = None,
        dtype: torch.dtype | None = None,
    ):
        del batch_size
        self.crops = crops
        self.dtype = dtype
        self.device = torch.device("cpu") if device_id is None else torch.device("cuda", device_id)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="torchvision")
        self.mean = torch.tensor(crops.mean, dtype=torch.float32)
        self.std = torch.tensor(crops.std, dtype=torch.float32)

    def stream(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[torch.Tensor]]]:
        """Crops of each request, in order. Raises DecodeFailure if an image cannot be decoded."""
        for request in requests:
            try:
                samples = list(self.pool.map(partial(self._sample, request), range(len(request.rows))))
            except BadImage as error:
                raise DecodeFailure(str(error), [request]) from None
            views = [torch.stack([sample[view] for sample in samples]) for view in range(len(self.crops.views))]
            groups = group_views(self.crops, views, self.dtype)
            yield request, [group.to(self.device, non_blocking=True) for group in groups]

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def decodes(self, encoded: np.ndarray, most: int) -> bool:
        """Whether PIL decodes these bytes."""
        return is_decodable(encoded.tobytes(), most)

    def _sample(self, request: Request, index: int) -> list[torch.Tensor]:
        views = range(len(self.crops.views))
        if request.pixels.native:
            array = request.native(index)
            return [self._native_view(array, request, index, view) for view in views]
        image = Image.fromarray(decode(request.encoded[index].tobytes(), request.most_pixels(index)))
        return [self._view(image, request.draw, index, view) for view in views]

    def _native_view(self, array: NDArray, request: Request, index: int, view: int) -> torch.Tensor:
        """One crop, (size, size, C) float32, normalized."""
        x = native_view(array, request.pixels, self.crops, request.draw, index, view)
        return (x - self.mean) / self.std

    def _view(self, image: Image.Image, draw: Draw, index: int, view: int) -> torch.Tensor:
        """One crop, (size, size, 3) float32, normalized."""
        from torchvision.transforms import functional

        size, changes = self.crops.views[view].size, self.crops.changes[view]
        x = functional.resized_crop(image, *draw.window[index, view].tolist(), [size, size])
        if draw.flip[index, view]:
            x = functional.hflip(x)
        if turns := int(draw.turns[index, view]):
            x = x.transpose(TURNS[turns - 1])
        if draw.jitter[index, view]:
            brightness, contrast, saturation, hue = draw.factors[index, view].tolist()
            for step in draw.order[index, view]:
                if step == 0:
                    x = functional.adjust_brightness(x, brightness)
                elif step == 1:
                    x = functional.adjust_contrast(x, contrast)
                elif step == 2:
                    x = functional.adjust_saturation(x, saturation)
                elif hue != 0:  # ColorJitter skips a step without strength: a rotation by 0 would still round in HSV
                    x = functional.adjust_hue(x, hue)
            if changes.jitter.gain:
                bands = zip(x.split(), draw.gains[index, view].tolist(), strict=True)
                x = Image.merge("RGB", [functional.adjust_brightness(band, gain) for band, gain in bands])
        if draw.grayscale[index, view]:
            x = functional.to_grayscale(x, num_output_channels=3)
        if draw.blur[index, view]:
            x = x.filter(ImageFilter.GaussianBlur(radius=float(draw.sigma[index, view])))
        if draw.solarize[index, view]:
            x = functional.solarize(x, 255 * changes.solarize.threshold)
        if draw.posterize[index, view]:
            x = functional.posterize(x, changes.posterize.bits)
        pixels = torch.from_numpy(np.asarray(x, dtype=np.float32) / 255)
        return (pixels - self.mean) / self.std
