"""Images that are bare samples in a file, byte ranges of one type and order of channels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.progress import progress_bar
from pipeline.dataset.channels.decode import decode_as
from pipeline.dataset.channels.format import PixelFormat
from pipeline.dataset.images import BadImage, Probes
from pipeline.dataset.table import DECODE, State


def scanned_samples(
    root: Path,
    names: Any,
    container: NDArray[np.int32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    size: tuple[NDArray[np.int32], NDArray[np.int32]],
    pixels: PixelFormat,
    progress: bool,
    check: str,
) -> Probes:
    """What a scan finds out about such images: see `SampleTable` for the columns. size: widths and heights.

    Whole numbers of 8 and 16 bits without a sign are images whatever they are; others are read once, for their values
    may be infinite or none that float32 has.
    """
    width, height = (side.copy() for side in size)
    state, quarantine = np.full(len(offset), State.ARRAY, np.uint8), dict[int, str]()
    if check == DECODE and not pixels.has_range:
        with progress_bar(len(offset), "checking images", "img", progress) as bar:
            for number, name in enumerate(names):
                with open(os.path.join(root, name), "rb") as file:
                    for row in np.flatnonzero(container == number).tolist():
                        try:
                            data = os.pread(file.fileno(), int(length[row]), int(offset[row]))
                            decode_as(data, pixels, int(height[row]), int(width[row]))
                        except BadImage as error:
                            quarantine[row], state[row], width[row], height[row] = error.reason, State.QUARANTINED, 0, 0
                        bar.update()
    return Probes(length, width, height, state, quarantine, pixels)
