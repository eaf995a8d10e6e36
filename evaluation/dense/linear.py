"""Linear segmentation: batch norm and a linear layer on the maps of a frozen backbone.

After DINOv2's linear evaluation (Oquab et al., TMLR 2024) with the settings of its published mmsegmentation heads, but
for their warm-up: random scale from 0.5 to 2, random crop, flip; AdamW, learning rate 1e-3, weight decay 1e-4, falling
linearly to 0; cross entropy of the enlarged logits. Scored with sliding windows that overlap by a third, at the masks'
own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from common.progress import progress_bar
from evaluation.dense.confusion import IGNORED, confusion
from evaluation.dense.maps import Maps, as_input, scaled
from evaluation.dense.masks import Masked
from evaluation.dense.windows import sliding_logits
from evaluation.progress import average_
from evaluation.session import Session
from pipeline.crops import Crops

SCALES = (0.5, 2.0)


def train_layer(maps: Maps, channels: int, data: Masked, crops: Crops, steps: int, rate: float, session: Session,
                what: str) -> nn.Module:  # fmt: skip
    """The trained layer, in eval mode. crops: size and normalization. Steps take session.batch images over all
    processes."""
    torch.manual_seed(session.seed)
    layer = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, data.classes, 1)).to(session.device)
    nn.init.normal_(layer[1].weight, std=0.01)  # type: ignore[arg-type]
    nn.init.zeros_(layer[1].bias)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=1e-4)
    size = crops.views[0].size
    with progress_bar(steps, what, "step", session.cluster.main) as bar:
        for step, (images, masks) in enumerate(batches(data, crops, steps, session)):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            logits = layer(maps(images.to(session.device)))
            logits = functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
            loss = functional.cross_entropy(logits, masks.to(session.device), ignore_index=IGNORED, reduction="sum")
            loss = loss / (masks != IGNORED).sum().clamp(min=1)  # the mean would be nan where nothing counts
            optimizer.zero_grad()
            loss.backward()
            average_([parameter.grad for parameter in layer.parameters() if parameter.grad is not None])
            optimizer.step()
            bar.update()
    average_([buffer for buffer in layer.buffers() if buffer.is_floating_point()])
    return layer.eval()


def batches(
    data: Masked, crops: Crops, steps: int, session: Session
) -> Iterator[tuple[Float[Tensor, "batch 3 size size"], Int[Tensor, "batch size size"]]]:
    """This process's augmented crops, in an order that a seed fixes."""
    cluster, size = session.cluster, crops.views[0].size
    own = session.batch // cluster.world_size

    def sample(step: int, place: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng((session.seed, step, place))
        order = np.random.default_rng((session.seed, (step * session.batch + place) // len(data.train)))
        pair = data.train[order.permutation(len(data.train))[(step * session.batch + place) % len(data.train)]]
        return augmented(*data.read(pair), size, crops, random)

    places = [cluster.rank * own + index for index in range(own)]
    with ThreadPoolExecutor(session.threads) as pool:
        made = [pool.submit(sample, 0, place) for place in places]
        for step in range(steps):
            ready = [future.result() for future in made]
            made = [pool.submit(sample, step + 1, place) for place in places] if step + 1 < steps else []
            images, masks = zip(*ready, strict=True)
            yield torch.stack(images), torch.stack(masks)


def augmented(
    image: Image.Image, mask: np.ndarray, size: int, crops: Crops, random: np.random.Generator
) -> tuple[Float[Tensor, "3 size size"], Int[Tensor, "size size"]]:
    """A random crop of the image at a random scale, flipped or not, and its mask; beyond the image all is ignored."""
    image = scaled(image, max(1, round(size * random.uniform(*SCALES))))
    resized = np.array(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)).astype(np.int64)
    pixels = as_input(image, crops.mean, crops.std)
    below, beside = max(0, size - image.height), max(0, size - image.width)
    pixels = functional.pad(pixels, (0, beside, 0, below))
    resized = np.pad(resized, ((0, below), (0, beside)), constant_values=IGNORED)
    top = int(random.integers(pixels.shape[1] - size + 1))
    left = int(random.integers(pixels.shape[2] - size + 1))
    window = slice(top, top + size), slice(left, left + size)
    pixels, labels = pixels[:, *window], torch.from_numpy(resized[window])
    return (pixels.flip(2), labels.flip(1)) if random.random() < 0.5 else (pixels, labels)


def score(
    function: Callable[[Tensor], Tensor], data: Masked, crops: Crops, session: Session, what: str
) -> Int[np.ndarray, "classes classes"]:
    """The confusion matrix of the test images, over all processes. function: crops -> logits."""
    cluster, size = session.cluster, crops.views[0].size
    matrix = np.zeros((data.classes, data.classes), np.int64)
    mine: Sequence[tuple[Path, Path]] = data.test[cluster.rank :: cluster.world_size]
    with progress_bar(len(mine), what, "img", cluster.main) as bar, torch.no_grad():
        for pair in mine:
            image, mask = data.read(pair)
            pixels = as_input(scaled(image, size), crops.mean, crops.std).to(session.device)
            logits = sliding_logits(function, pixels, size, max(1, size * 2 // 3))
            whole = functional.interpolate(logits[None], mask.shape, mode="bilinear", align_corners=False)[0]
            matrix += confusion(mask, whole.argmax(0).cpu().numpy(), data.classes)
            bar.update()
    return summed(matrix, session)


def summed(matrix: Int[np.ndarray, "classes classes"], session: Session) -> Int[np.ndarray, "classes classes"]:
    """The sum over all processes."""
    if session.cluster.world_size == 1:
        return matrix
    total = torch.from_numpy(matrix).to(session.device)
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()
