"""Folders of files with several images: each frame of a DICOM, and each page of a TIFF, where they are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from common.processes import in_processes
from common.progress import progress_bar
from pipeline.dataset.channels.dicom import frame_count
from pipeline.dataset.channels.tiff import page_count
from pipeline.dataset.inside.names import FRAME
from pipeline.dataset.sniff import NO_EXTENSION, extension
from pipeline.dataset.table import Names

BLOCK = 256  # files of a task
Frames = Int64[np.ndarray, " images"]
DICOM = (".dcm", ".dicom", NO_EXTENSION)  # a number after a dot is no extension
TIFF = (*DICOM, ".tif", ".tiff")


def frames_of(
    root: Path, names: Sequence[str], workers: int, progress: bool, pages: bool = False
) -> Int64[np.ndarray, " n"]:
    """The number of frames of each DICOM, and with `pages` of pages of each TIFF; 1 for other files."""
    suffixes, count = (TIFF, _pages) if pages else (DICOM, _counts)
    able = [row for row, name in enumerate(names) if extension(name) in suffixes]
    counts = np.ones(len(names), np.int64)
    blocks = [able[first : first + BLOCK] for first in range(0, len(able), BLOCK)]
    tasks = ([str(root / names[row]) for row in block] for block in blocks)
    with progress_bar(len(able), "counting frames", "file", progress and len(able) > BLOCK) as bar:
        for block, found in zip(blocks, in_processes(count, tasks, min(workers, len(blocks))), strict=True):
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


def _pages(files: list[str]) -> list[int]:
    return [max(frame_count(file), page_count(file)) for file in files]
