"""Plain folders of images: the listing, and the scan that decodes every image once.

`probe_rows` is also what shards are scanned with: it takes byte ranges, in files of their own or not.
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

CHUNK = 64  # images a task: a tenth of a second of decoding; hand-over costs nothing, progress is smooth


@dataclass(frozen=True)
class Listing:
    """What a scan will read: names relative to a root; (N,) int64 bytes and modification times in ns; labels
    or -1. left_out: how many files were seen that are no images, by extension."""

    names: Names
    bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    label: NDArray[np.int32]
    classes: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Changes when a file comes, goes, is renamed, or gets another size or time."""
        digest = hashlib.sha256(self.names.blob)
        for column in (self.bytes, self.mtime_ns, self.label):
            digest.update(column.tobytes())
        digest.update(Names.of(self.classes).blob)
        return digest.hexdigest()


def list_folder(root: Path, sniff: bool = False, progress: bool = False) -> Listing:
    """All images below `root` in one fixed order (files of a folder by name, then its sub-folders by name).

    The class of an image is the first-level sub-folder it lies under; empty ones count too, so that train and
    test folders agree. Hidden files and folders are skipped; symbolic links are followed, but never round in
    a circle. `sniff`: look into files whose extension is no image's. A million of them take 10 s more (on top of
    9 s; from the page cache, over a network each is a round trip): a conversion pays that once, training would at
    each start. `progress`: count the files on stderr.
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
            told = f"cannot list the folder {root / folder} ({error.strerror})"
            raise DatasetError(f"{told}; make it readable or take it out") from None
        for entry in entries:
            bar.update()
            if entry.name.startswith("."):
                continue
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                inner.append(relative)
            else:
                wanted = has_extension(entry.name)
                size, mtime = _size_and_time(entry) if wanted or sniff else (None, 0)
                if size is None or not (wanted or looks_like_image(entry.name, _head(entry.path))):
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
    """The first bytes of a regular file, none where it cannot be opened."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int | None, int]:
    """(None, 0) for what is no file (a pipe would block the scan); a dangling link is a row, to be
    quarantined."""
    try:
        found = entry.stat()
    except OSError:
        return 0, 0
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (None, 0)


def scan_folder(
    root: Path,
    workers: int = 1,
    progress: bool = True,
    listing: Listing | None = None,
) -> SampleTable:
    """Decode every image below `root` once and give its table. Raises DatasetError where a folder cannot be
    listed."""
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
    """Columns of a table that only a decode can tell, (N,) each, and the reasons by row."""

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
    """Decode the byte ranges (`length` None: whole files) in `workers` processes; progress on stderr."""
    rows = len(container)
    found = np.zeros((3, rows), np.int64)  # length, width, height
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
        for first, answers in in_processes(_probe_chunk, tasks(), workers if rows > 8 * CHUNK else 1):
            for row, (size, answer) in enumerate(answers, first):
                found[:, row] = size, answer.width, answer.height
                state[row] = answer.state
                if answer.state == State.QUARANTINED:
                    quarantine[row] = answer.reason
            bar.update(len(answers))
    return Probes(found[0], found[1].astype(np.int32), found[2].astype(np.int32), state, quarantine)


def _probe_chunk(
    task: tuple[int, str, list[str], list[int], list[int] | None],
) -> tuple[int, list[tuple[int, Probe]]]:
    first, root, names, offsets, lengths = task
    answers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on broken metadata: what matters is in the answer
        for index, (name, offset) in enumerate(zip(names, offsets, strict=True)):
            length = None if lengths is None else lengths[index]
            try:
                with open(os.path.join(root, name), "rb") as file:
                    file.seek(offset)
                    data = file.read() if length is None else file.read(length)
            except OSError:
                answers.append((length or 0, Probe(0, 0, State.QUARANTINED, "unreadable")))
                continue
            answers.append((len(data) if length is None else length, probe(data)))
    return first, answers
