"""What goes into a backend and what comes out of the loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.crops import Crops
from pipeline.draw import Draw

DrawRows = Callable[[np.ndarray, np.ndarray, np.ndarray], Draw]  # rows, heights, widths -> their draw


@dataclass
class Request:
    """One rank's share of a global batch on its way to a backend: B rows, their encoded bytes and their draw.

    height, width: (B,) pixels of the images as displayed.
    `rows` are those of the order; `draw.rows` differs where an unreadable row was replaced by its substitute.
    """

    epoch: int
    samples: int  # position in the epoch after this batch
    rows: np.ndarray
    height: np.ndarray
    width: np.ndarray
    draw: Draw
    encoded: list[np.ndarray]
    draw_rows: DrawRows


class DecodeFailure(Exception):
    """A backend refused an image; `requests` are those that were under way and must be asked for again."""

    def __init__(self, reason: str, requests: list[Request]):
        super().__init__(reason)
        self.requests = requests


@dataclass
class Batch:
    """What a step consumes.

    crops: a tensor per resolution, (views * B, 3, size, size), view-major: first all B crops of one view, then of
    the next; normalised, channels-last in memory, float32 on a CPU and float16 on a GPU unless the loader was asked
    for another dtype.
    rows: (B,) int64 sample rows.
    """

    crops: list[torch.Tensor]
    rows: np.ndarray


def group_views(crops: Crops, views: list[Any], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Per-view (B, size, size, 3) tensors -> one channels-last (views * B, 3, size, size) tensor per resolution, of
    their own dtype or of `dtype`."""
    groups = []
    for _, members in crops.groups:
        stacked = torch.cat([views[index] for index in members]) if len(members) > 1 else views[members[0]]
        groups.append(stacked.to(dtype or stacked.dtype).permute(0, 3, 1, 2))
    return groups


def split_batch(crops: list[torch.Tensor], batch: int, parts: int) -> Iterator[list[torch.Tensor]]:
    """`parts` batches of batch / parts samples each, in order, from the crops of `batch` samples (view-major)."""
    if parts == 1:
        yield crops
        return
    size = batch // parts
    for first in range(0, batch, size):
        yield [torch.cat([view[first : first + size] for view in group.split(batch)]) for group in crops]
