"""Folders of DICOM files, of which some have several frames: each frame is an image, to be spooled as .npy."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from common.processes import in_processes
from common.progress import progress_bar
from pipeline.conversion.spool import TAR_BYTES, Sample, SpoolSource
from pipeline.dataset.channels.dicom import frame_count, frames_of, is_dicom
from pipeline.dataset.folder import Listing
from pipeline.dataset.images import MAX_PIXELS, BadImage
from pipeline.dataset.sniff import NO_EXTENSION, extension

BLOCK = 256  # files of a task
HEADER = 1 << 16  # bytes of a file that are read for its number of frames
SEPARATOR = "\n"


def dicom_source(root: Path, listing: Listing, workers: int, progress: bool) -> SpoolSource | None:
    """The source of a folder in which a DICOM has several frames; None for other folders, whose files are images."""
    names = [name for name in listing.names if extension(name) in (".dcm", ".dicom", NO_EXTENSION)]
    if not names or listing.images is not None:
        return None
    blocks = [names[first : first + BLOCK] for first in range(0, len(names), BLOCK)]
    tasks = ([str(root / name) for name in block] for block in blocks)
    several = False
    with progress_bar(len(names), "counting frames", "file", progress and len(names) > BLOCK) as bar:
        for block, frames in zip(blocks, in_processes(_most_frames, tasks, min(workers, len(blocks))), strict=True):
            several |= frames > 1
            bar.update(len(block))
    if not several:
        return None
    labels = dict(zip(listing.names, listing.label.tolist(), strict=True))
    every = list(listing.names)
    inputs = [SEPARATOR.join(every[first : first + BLOCK]) for first in range(0, len(every), BLOCK)]
    read = partial(samples, root=str(root), labels=labels)
    size = int(listing.bytes.sum()) + TAR_BYTES * len(every)
    return SpoolSource(
        "dicom", inputs, [root / name for name in every], read, size, listing.classes, left_out=listing.left_out
    )


def samples(names: str, root: str, labels: dict[str, int]) -> Iterator[Sample]:
    """The images of a block of files: each frame of a DICOM by itself, the bytes of others."""
    for name in names.split(SEPARATOR):
        data, stem = Path(root, name).read_bytes(), name.rpartition(".")[0] or name
        try:
            frames = frames_of(data, MAX_PIXELS) if is_dicom(data) and frame_count(data) > 1 else []
        except BadImage:
            frames = []  # packing quarantines the file, with the reason
        if not frames:
            yield Sample(stem, data, labels[name])
        for number, frame in enumerate(frames):
            stream = io.BytesIO()
            np.save(stream, frame if frame.ndim == 3 else frame[:, :, None])
            yield Sample(f"{stem}-frame{number:04d}", stream.getvalue(), labels[name])


def _most_frames(files: list[str]) -> int:
    """The most frames that one of these files has."""
    counts = [1]
    for file in files:
        try:
            with open(file, "rb") as stream:
                data = stream.read(HEADER)
            counts += [frame_count(data)] if is_dicom(data) else []
        except (OSError, BadImage):
            continue
    return max(counts)
