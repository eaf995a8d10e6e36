"""Folders of DICOM: each frame of a file is an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from common.processes import in_processes
from common.progress import progress_bar
from pipeline.dataset.channels.dicom import frame_count
from pipeline.dataset.inside.names import FRAME
from pipeline.dataset.sniff import NO_EXTENSION, extension
from pipeline.dataset.table import Names

BLOCK = 256  # files of a task
Frames = Int64[np.ndarray, " images"]
DICOM = (".dcm", ".dicom", NO_EXTENSION)  # a number after a dot is no extension


def frames_of(root: Path, names: Sequence[str], workers: int, progress: bool) -> Int64[np.ndarray, " n"]:
    """The number of frames of each file, 1 for what is no DICOM."""
    able = [row for row, name in enumerate(names) if extension(name) in DICOM]
    counts = np.ones(len(names), np.int64)
    blocks = [able[first : first + BLOCK] for first in range(0, len(able), BLOCK)]
    tasks = ([str(root / names[row]) for row in block] for block in blocks)
    with progress_bar(len(able), "counting frames", "file", progress and len(able) > BLOCK) as bar:
        for block, found in zip(blocks, in_processes(_counts, tasks, min(workers, len(blocks))), strict=True):
            counts[block] = found
            bar.update(len(block))
    return counts


def by_frame(names: Sequence[str], counts: Int64[np.ndarray, " n"]) -> tuple[Names, Frames, Frames]:
    """The containers of files with so many frames, and of each of their images the container and the frame."""
    frames = [name + FRAME if count > 1 else name for name, count in zip(names, counts, strict=True)]
    file = np.repeat(np.arange(len(counts)), counts)
    return Names.of(frames), file, np.arange(len(file)) - (np.cumsum(counts) - counts)[file]


def _counts(files: list[str]) -> list[int]:
    return [frame_count(file) for file in files]
