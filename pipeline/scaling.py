"""How far an image may shrink while it is decoded: a function of its draw alone, so that all runs agree on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

SHRINKS = (1, 2, 4, 8)  # libjpeg-turbo's fast ones; 7/8 to 5/8 and 3/8 take longer than the next larger of these


def shrinks(window: Int[np.ndarray, "B V 4"], sizes: Sequence[int] | np.ndarray) -> Int[np.ndarray, " B"]:
    """The largest of `SHRINKS` for each image that leaves all its windows at least as high and wide as their crops.

    window: (top, left, height, width) in pixels of the whole image; sizes: (V,) pixels a side of each view's crop.
    """
    room = (window[..., 2:].min(axis=-1) // np.asarray(sizes, np.int64)).min(axis=-1)
    return np.asarray(SHRINKS, np.int64)[np.searchsorted(SHRINKS, np.maximum(room, 1), side="right") - 1]
