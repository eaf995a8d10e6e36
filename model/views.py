"""Selects some of a step's crops (views)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def select_views(values: Float[Tensor, "views batch ..."], views: Sequence[int]) -> Float[Tensor, "chosen batch ..."]:
    """`values` of the given views, in their order.

    A slice (no copy) where the views are consecutive. Otherwise a cached index: a Python list as an index would be
    copied to the device in each step, and the host would wait for it.
    """
    first, count = views[0], len(views)
    if list(views) == list(range(first, first + count)):
        return values[first : first + count]
    return values[_index(tuple(views), values.device)]


@lru_cache(maxsize=64)
def _index(views: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(views, device=device)
