"""Images that are several files, one for each word of `data.bands`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from pipeline.dataset.channels.bands import samples_of
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.table import DatasetError


class Banded(NamedTuple):
    """N images of B files. files: their places among all names; label: (N,) by the first folder of their common name,
    -1 without; left_out: number of files without the other bands, by that reason."""

    files: Int64[np.ndarray, "n bands"]
    label: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]
    left_out: dict[str, int]


def banded(names: Sequence[str], choice: Choice) -> Banded:
    """The images whose files have these names. Raises DatasetError if there is none."""
    files, keys = samples_of(names, choice.words)
    if not len(files):
        raise DatasetError(f"data.bands={choice.bands}: no image has a file for each of them; see docs/data.md")
    tops = [key.partition("/")[0] if "/" in key else "" for key in keys]
    classes = tuple(sorted({top for top in tops if top and "*" not in top}))
    label = np.array([classes.index(top) if top in classes else -1 for top in tops], np.int32)
    rest = len(names) - files.size
    return Banded(files, label, classes, {"file without the other bands": rest} if rest else {})
