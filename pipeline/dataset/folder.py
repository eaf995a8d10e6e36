"""Plain folders of images: lists them, and decodes every image once for the sample table.

`probe_rows` takes byte ranges of any files, so shards and .beton files are scanned with it too.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.processes import in_processes
from common.progress import progress_bar
from pipeline.dataset.images import Probe, probe
from pipeline.dataset.sniff import HEAD, extension, has_extension, looks_like_image
from pipeline.dataset.table import DatasetError, Names, SampleTable, State

CHUNK = 64  # images per task, a tenth of a second of decoding: progress is smooth, the cost of a task negligible


@dataclass(frozen=True)
class Listing:
    """The N files that a scan will read.

    names: relative to a root; bytes, mtime_ns: (N,) int64, size and modification time; label: (N,) int32, -1 without.
    left_out: number of files that are no images, by extension.
    """

    names: Names
    bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    label: NDArray[np.int32]
    classes: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or renamed, or its size or time changes."""
        digest = hashlib.sha256(self.names.blob)
        for column in (self.bytes, self.mtime_ns, self.label):
            digest.update(column.tobytes())
        digest.update(Names.of(self.classes).blob)
        return digest.hexdigest()


def list_folder(root: Path, sniff: bool = False, progress: bool = False) -> Listing:
    """All images below `root` in one fixed order (files of a folder by name, then its sub-folders by name).

    The class of an image is its first-level sub-folder; empty ones count too, so that the numbers of train and test
    folders agree. Hidden files and folders are skipped. Symbolic links are followed, but not in circles.

    sniff: also read the first bytes of files that have no image extension. A million such files take 19 s instead of
    9 s from the page cache, and a round trip each over a network: conversion pays that once, training would pay it at
    each start. progress: count the files on stderr. Raises DatasetError if a folder cannot be listed.
    """
    with progress_bar(None, f"listing {root}", "file", progress) as bar:
        return _listed(root, sniff, bar)


def _listed(root: Path, sniff: bool, bar: Any) -> Listing:
    blob, sizes, times, labels = bytearray(), array("q"), array("q"), array("i")
    classes: list[str] = []
    left_out: Counter[str] = Counter()
    pending: list[tuple[str, frozenset[tuple[int, int]], int]] = [("", frozenset(), -1)]
    while pending:
        folder, above, label = pending.pop()
        here = os.stat(root / folder)
        if (here.st_dev, here.st_ino) in above:
            continue
        inner = []
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            problem = f"cannot list the folder {root / folder} ({error.strerror})"
            raise DatasetError(f"{problem}; make it readable or remove it") from None
        for entry in entries:
            bar.update()
            if entry.name.startswith("."):
                continue
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                inner.append(relative)
            else:
                is_named_image = has_extension(entry.name)
                size, mtime = _size_and_time(entry) if is_named_image or sniff else (None, 0)
                if size is None or not (is_named_image or looks_like_image(entry.name, _head(entry.path))):
                    left_out[extension(entry.name)] += 1
                    continue
                blob += relative.encode("utf-8", "surrogateescape") + b"\0"
                sizes.append(size)
                times.append(mtime)
                labels.append(label)
        if not folder:
            classes = inner
        chain = above | {(here.st_dev, here.st_ino)}
        for index, name in reversed(list(enumerate(inner))):  # a stack: the first in order is pushed last
            pending.append((name, chain, label if folder else index))
    columns = (np.array(sizes, np.int64), np.array(times, np.int64), np.array(labels, np.int32))
    return Listing(Names(bytes(blob)), *columns, classes=tuple(classes), left_out=dict(left_out.most_common()))


def _head(path: str) -> bytes:
    """The first bytes of a regular file; b'' if it cannot be opened."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int | None, int]:
    """Size and time in ns. (None, 0) if it is no file (a pipe would block the scan); (0, 0) for a dangling link, which
    the scan quarantines."""
    try:
        status = entry.stat()
    except OSError:
        return 0, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (None, 0)


def scan_folder(
    root: Path,
    workers: int = 1,
    progress: bool = True,
    listing: Listing | None = None,
) -> SampleTable:
    """The table of the images below `root`, a row per image; decodes each once, in `workers` processes.

    Raises DatasetError if a folder cannot be listed.
    """
    root = Path(root).resolve()
    listing = list_folder(root) if listing is None else listing
    rows = len(listing.names)
    container, offset = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int64)
    probes = probe_rows(root, listing.names, container, offset, None, workers, progress)
    return SampleTable(
        root=root, containers=listing.names, container=container, offset=offset,
        label=listing.label, classes=listing.classes, fingerprint=listing.fingerprint(), **probes._asdict(),
    )  # fmt: skip


# ------------------------------------------------------------------------------------- decoding in parallel


class Probes(NamedTuple):
    """The columns of a table that need a decode, (N,) each, and the quarantine reasons by row."""

    length: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    state: NDArray[np.uint8]
    quarantine: dict[int, str]


def probe_rows(
    root: Path,
    containers: Sequence[str],
    container: NDArray[np.int32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64] | None,
    workers: int,
    progress: bool,
    what: str = "checking images",
) -> Probes:
    """Decode N byte ranges (`length` None: whole files) in `workers` processes; progress on stderr."""
    rows = len(container)
    sizes = np.zeros((3, rows), np.int64)  # length, width, height
    state = np.zeros(rows, np.uint8)
    quarantine: dict[int, str] = {}

    def tasks() -> Iterator[tuple[int, str, list[str], list[int], list[int] | None]]:
        for first in range(0, rows, CHUNK):
            part = slice(first, first + CHUNK)
            names = [containers[index] for index in container[part]]
            lengths = None if length is None else length[part].tolist()
            yield first, str(root), names, offset[part].tolist(), lengths

    with progress_bar(rows, what, "img", progress) as bar:
        # Starting a process costs as much as decoding a few hundred images.
        for first, probes in in_processes(_probe_chunk, tasks(), workers if rows > 8 * CHUNK else 1):
            for row, (size, image) in enumerate(probes, first):
                sizes[:, row] = size, image.width, image.height
                state[row] = image.state
                if image.state == State.QUARANTINED:
                    quarantine[row] = image.reason
            bar.update(len(probes))
    return Probes(sizes[0], sizes[1].astype(np.int32), sizes[2].astype(np.int32), state, quarantine)


def _probe_chunk(
    task: tuple[int, str, list[str], list[int], list[int] | None],
) -> tuple[int, list[tuple[int, Probe]]]:
    first, root, names, offsets, lengths = task
    probes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about broken metadata; the probe reports what matters
        for index, (name, offset) in enumerate(zip(names, offsets, strict=True)):
            length = None if lengths is None else lengths[index]
            try:
                with open(os.path.join(root, name), "rb") as file:
                    file.seek(offset)
                    data = file.read() if length is None else file.read(length)
            except OSError:
                probes.append((length or 0, Probe(0, 0, State.QUARANTINED, "unreadable")))
                continue
            probes.append((len(data) if length is None else length, probe(data)))
    return first, probes
