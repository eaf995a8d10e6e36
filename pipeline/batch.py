"""The values between the parts of the loader: requests go into a backend, batches come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.crops import Crops
from pipeline.dataset.channels.decode import decode_as
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.images import MAX_PIXELS
from pipeline.draw import Draw

DrawRows = Callable[[np.ndarray, np.ndarray, np.ndarray], Draw]  # rows, heights, widths -> draw


@dataclass
class Request:
    """One rank's part of a global batch, to be executed by a backend: B rows, their encoded bytes and their draw.

    rows: (B,) int64 as the order gives them; `draw.rows` differs where an unreadable row has a substitute.
    height, width: (B,) pixels of the images as displayed. pixels: what the bytes are decoded to.
    """

    epoch: int
    samples: int  # position in the epoch after this batch
    rows: np.ndarray
    height: np.ndarray
    width: np.ndarray
    draw: Draw
    encoded: list[np.ndarray]
    draw_rows: DrawRows
    pixels: PixelFormat = COLOR

    def most_pixels(self, index: int) -> int:
        """The most pixels that the image of one of the rows may have."""
        return max(MAX_PIXELS, int(self.height[index]) * int(self.width[index]))

    def native(self, index: int) -> NDArray:
        """The decoded image (H, W, C) of one of the rows, in its own channels. Raises BadImage."""
        height, width = int(self.height[index]), int(self.width[index])
        encoded = self.encoded[index]
        base = encoded.base
        whole = isinstance(base, bytes) and len(base) == encoded.nbytes  # then a copy is not needed
        return decode_as(base if whole else encoded.tobytes(), self.pixels, height, width)  # type: ignore[arg-type]


class DecodeFailure(Exception):
    """A backend cannot decode an image; `requests` were under way and have to be made again."""

    def __init__(self, reason: str, requests: list[Request]):
        super().__init__(reason)
        self.requests = requests


@dataclass
class Batch:
    """The crops of one training step on one rank.

    crops: a tensor per resolution, (views * B, C, size, size), view-major: first all B crops of one view, then of
    the next; normalized, channels-last in memory, by default float32 on a CPU and float16 on a GPU.
    rows: (B,) int64 sample rows.
    """

    crops: list[torch.Tensor]
    rows: np.ndarray


def group_views(crops: Crops, views: list[Any], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Tensors of each view, (B, size, size, C) -> a channels-last (views * B, C, size, size) tensor per resolution,
    converted to `dtype` if given."""
    groups = []
    for _, members in crops.groups:
        stacked = torch.cat([views[index] for index in members]) if len(members) > 1 else views[members[0]]
        groups.append(stacked.to(dtype or stacked.dtype).permute(0, 3, 1, 2))
    return groups


def split_batch(crops: list[torch.Tensor], batch: int, parts: int) -> Iterator[list[torch.Tensor]]:
    """Split the view-major crops of `batch` samples into `parts` batches of batch / parts samples each, in order."""
    if parts == 1:
        yield crops
        return
    size = batch // parts
    for first in range(0, batch, size):
        yield [torch.cat([view[first : first + size] for view in group.split(batch)]) for group in crops]
