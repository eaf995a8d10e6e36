"""Plain folders of images: lists them, and decodes every image once, or reads its header, for the sample table.

`probe_rows` takes byte ranges of any files, so shards and .beton files are scanned with it too.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.holes import open_file, pread
from common.processes import in_processes
from common.progress import progress_bar
from pipeline.dataset.channels.bands import packed
from pipeline.dataset.channels.decode import DEEP_HEAD, may_be_deep
from pipeline.dataset.channels.settle import AUTO, RGB, Native, look, settled
from pipeline.dataset.columns import Growing, blocks, new_column
from pipeline.dataset.finding.banded import banded
from pipeline.dataset.finding.choice import (
    ALL,
    NOT_CHOSEN,
    PAGES,
    Choice,
    scanned_pixels,
    split_key,
    takes_arrays,
    wanted_suffixes,
)
from pipeline.dataset.headers import probe_headers
from pipeline.dataset.images import BadImage, Probe, Probes
from pipeline.dataset.inside.frames import by_frame, frames_of
from pipeline.dataset.inside.names import is_inside
from pipeline.dataset.inside.read import read_place
from pipeline.dataset.sniff import HEAD, extension, has_array_extension, has_extension, is_hidden, looks_like_image
from pipeline.dataset.table import COLUMNS, DECODE, HEADERS, DatasetError, Names, SampleTable, State
from pipeline.remote.probes import kept_probes

RGB_ONLY = Choice(channels=RGB)
CHUNK = 64  # images per task, a tenth of a second of decoding: progress is smooth, the cost of a task negligible
CHUNK_OF_HEADERS = 1024  # 30 ms
READERS = 8  # threads of a process that read headers: they wait for storage


@dataclass(frozen=True)
class Listing:
    """The N files of a source. In a folder these are all its files, until `images_of` keeps the images.

    names: relative to a root; bytes, mtime_ns: (N,) int64, size and modification time; label: (N,) int32, -1 without.
    named: (N,) bool, whether the name has an image extension; left_out: number of files that are no images, by
    extension. others: digest of the files without an image extension, '' if there are none. images: (M, B) int64, the
    files of each image, where it is B of them (`label` is then of the images); None where it is one.
    """

    names: Names
    bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    label: NDArray[np.int32]
    classes: tuple[str, ...]
    named: NDArray[np.bool_] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    others: str = ""
    images: NDArray[np.int64] | None = None

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or renamed, or its size or time changes."""
        digest = hashlib.sha256(self.names.blob)
        for column in (self.bytes, self.mtime_ns, self.label):
            digest.update(column.data)
        digest.update(Names.of(self.classes).blob)
        return digest.hexdigest()

    def rows(self, keep: NDArray[np.bool_]) -> Listing:
        """The files of which `keep`, (N,) bool, is true."""
        names = Names.of(self.names[index] for index in np.flatnonzero(keep).tolist())
        columns: dict[str, Any] = {
            "bytes": self.bytes[keep],
            "mtime_ns": self.mtime_ns[keep],
            "label": self.label[keep],
        }
        return replace(self, names=names, named=None, **columns)


def list_folder(root: Path, progress: bool = False, spool: Path | None = None) -> Listing:
    """All files below `root` in one fixed order (files of a folder by name, then its sub-folders by name).

    The class of a file is its first-level sub-folder; empty ones count too, so that the numbers of train and test
    folders agree. Hidden files and folders are skipped. Symbolic links are followed, but not in circles. progress:
    count the files on stderr. spool: a folder for what takes much memory. Raises DatasetError if a folder cannot be
    listed.
    """
    with progress_bar(None, f"listing {root}", "file", progress) as bar:
        return _listed(root, bar, spool)


def images_of(
    root: Path, listing: Listing, choice: Choice = NOT_CHOSEN, known: tuple[str, frozenset[str]] = ("", frozenset())
) -> Listing:
    """The images of a folder: files with an image extension, and others whose first bytes are an image's; where there
    are none of these, the .npy and .npz files.

    choice: `image` keeps only names with these suffixes, `label` can be 'none'. known: an earlier listing's `others`,
    and the images among those files: if nothing has changed no file is opened, which over a network would take a round
    trip each. Raises DatasetError.
    """
    assert listing.named is not None
    keep, others = listing.named.copy(), np.flatnonzero(~listing.named)
    names = [listing.names[index] for index in others]
    digest = listing.rows(~listing.named).fingerprint() if names else ""
    if digest == known[0]:
        keep[others] = [name in known[1] for name in names]
    else:
        with ThreadPoolExecutor(16) as pool:  # they wait for storage
            heads = pool.map(lambda name: _head(os.path.join(root, name)), names)
            keep[others] = [looks_like_image(name, head) for name, head in zip(names, heads, strict=True)]
    if takes_arrays(choice, bool(keep.any())):
        keep |= np.array([has_array_extension(name) for name in listing.names], bool)
    if choice.channels == RGB and not keep.any() and any(map(has_array_extension, listing.names)):
        raise DatasetError("data.channels=rgb: .npy and .npz files are no pictures; leave it out")
    if choice.image not in (None, ALL):
        suffixes = [split_key(name)[1].lower() for name in listing.names]
        known_suffixes = {suffix for suffix, kept in zip(suffixes, keep, strict=True) if kept}
        keep &= np.isin(suffixes, wanted_suffixes(choice, known_suffixes))
    left_out = Counter(listing.left_out)
    left_out.update(extension(listing.names[index]) for index in np.flatnonzero(~keep))
    kept = listing if keep.all() else listing.rows(keep)
    if kept.classes and all((root / f"{name}_stats.json").is_file() for name in kept.classes):
        kept = replace(kept, label=np.full(len(kept.names), -1, np.int32), classes=())  # the shards of img2dataset
    kept = replace(kept, named=None, left_out=dict(left_out.most_common()), others=digest)
    if choice.bands is None:
        return kept
    images, label, classes, alone = banded(kept.names, choice)
    return replace(kept, images=images, label=label, classes=classes, left_out=kept.left_out | alone)


def _listed(root: Path, bar: Any, spool: Path | None) -> Listing:
    blob, ends, sizes, times, labels, named = (Growing(code, spool) for code in "BqqqiB")
    size_of_blob = 0
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
            if is_hidden(entry.name):
                continue
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                inner.append(relative)
                continue
            size, mtime = _size_and_time(entry)
            if size is None:
                left_out[extension(entry.name)] += 1
                continue
            encoded = relative.encode("utf-8", "surrogateescape") + b"\0"
            size_of_blob += len(encoded)
            blob.extend(encoded)
            ends.append(size_of_blob - 1)
            sizes.append(size)
            times.append(mtime)
            labels.append(label)
            named.append(has_extension(entry.name))
        if not folder:
            classes = inner
        chain = above | {(here.st_dev, here.st_ino)}
        for index, name in reversed(list(enumerate(inner))):  # a stack: the first in order is pushed last
            pending.append((name, chain, label if folder else index))
    return Listing(
        Names(blob.whole(np.uint8).data.toreadonly(), ends.whole(np.int64)), sizes.whole(np.int64),
        times.whole(np.int64), labels.whole(np.int32), tuple(classes), named.whole(bool), dict(left_out),
    )  # fmt: skip


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
    check: str = DECODE,
    spool: Path | None = None,
    choice: Choice = NOT_CHOSEN,
) -> SampleTable:
    """The table of the images below `root`, a row per image, of DICOM per frame; checks each once, in `workers`
    processes.

    listing: from `images_of`, if the caller has it. check: see `SampleTable`. spool: see `list_folder`. choice: of
    channels, layout and pages. Raises DatasetError if a folder cannot be listed.
    """
    root = Path(root).resolve()
    listing = images_of(root, list_folder(root)) if listing is None else listing
    rows = len(listing.names if listing.images is None else listing.images)
    container, offset = new_column(rows, np.int32, spool), new_column(rows, np.int64, spool)
    for part in blocks(rows):
        container[part] = np.arange(part.start, part.stop)
    bands = None
    if listing.images is not None:
        container, further = listing.images[:, 0].astype(np.int32), listing.images[:, 1:]
        bands = np.stack([further, np.zeros_like(further), listing.bytes[further]], axis=-1)
    names, label = listing.names, listing.label
    pages = choice.pages == PAGES
    if bands is None and ((counts := frames_of(root, names, workers, progress, pages)) > 1).any():
        names, container, offset = by_frame(names, counts)
        label = label[container]
    probes = kept_probes(root, names, container, offset, bands) or probe_rows(
        root, names, container, offset, None, workers, progress, check=check, spool=spool, choice=choice,
        bands=bands,
    )  # fmt: skip
    return SampleTable(
        root=root, containers=names, container=container, offset=offset, label=label, classes=listing.classes,
        fingerprint=listing.fingerprint(), left_out=listing.left_out, others=listing.others, check=check, bands=bands,
        **probes._asdict(),
    )  # fmt: skip


# ------------------------------------------------------------------------------------- checking in parallel


class _Task(NamedTuple):
    """Byte ranges of files, to be checked by one process; the first is row `first`."""

    first: int
    root: str
    names: list[str]
    offsets: list[int]
    lengths: list[int] | None
    check: str
    choice: Choice
    bands: list[list[tuple[str, int, int]]] | None = None  # further files of each


def probe_rows(
    root: Path,
    containers: Sequence[str],
    container: NDArray[np.int32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64] | None,
    workers: int,
    progress: bool,
    what: str = "checking images",
    check: str = DECODE,
    spool: Path | None = None,
    choice: Choice = RGB_ONLY,
    bands: NDArray[np.int64] | None = None,
) -> Probes:
    """Decode N places (`length` None or -1: whole files, and places inside of files), or read their headers, in
    `workers` processes; progress on stderr. check: see `SampleTable`; spool: see `list_folder`; choice: of channels and
    layout; bands: see `SampleTable`."""
    rows = len(container)
    bytes_, width, height, state = (new_column(rows, COLUMNS[name], spool) for name in Probes._fields[:4])
    quarantine: dict[int, str] = {}
    natives: dict[int, Native] = {}
    chunk = CHUNK if check == DECODE else CHUNK_OF_HEADERS

    def tasks() -> Iterator[_Task]:
        for first in range(0, rows, chunk):
            part = slice(first, first + chunk)
            names = [containers[index] for index in container[part]]
            lengths = None if length is None else length[part].tolist()
            further = None
            if bands is not None:
                further = [[(containers[file], *place) for file, *place in row] for row in bands[part].tolist()]
            yield _Task(first, str(root), names, offset[part].tolist(), lengths, check, choice, further)

    # Starting a process costs as much as decoding a few hundred images, or as reading ten thousand headers.
    workers = workers if rows > (8 if check == DECODE else 64) * chunk else 1
    with progress_bar(rows, what, "img", progress) as bar:
        for first, found, own in in_processes(_probe_chunk, tasks(), workers):
            part = slice(first, first + len(found.state))
            bytes_[part], state[part] = found.length, found.state
            width[part], height[part] = found.width, found.height
            quarantine.update({first + row: reason for row, reason in found.quarantine.items()})
            natives.update({first + row: native for row, native in own.items()})
            bar.update(len(found.state))
    pixels = settled(choice.channels, choice.layout, (width, height), state, quarantine, natives)
    return Probes(bytes_, width, height, state, quarantine, pixels)


def probe_encoded(
    root: Path,
    containers: Sequence[str],
    container: NDArray[np.int32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    shape: NDArray[np.int32],
    workers: int,
    progress: bool,
    check: str = DECODE,
    choice: Choice = RGB_ONLY,
) -> Probes:
    """Like `probe_rows`, but rows of raw RGB pixels are taken as they are. shape: (N, 2) int32, their height and width;
    (0, 0) for an encoded image, or for none. Of the choice only the most pixels count."""
    raw = shape.all(axis=1)
    encoded = np.flatnonzero(~raw)
    probes = probe_rows(
        root, containers, container[encoded], offset[encoded], length[encoded], workers, progress, check=check,
        choice=choice._replace(channels=RGB),
    )  # fmt: skip
    width, height, state = shape[:, 1].copy(), shape[:, 0].copy(), np.full(len(shape), State.RAW, np.uint8)
    width[encoded], height[encoded], state[encoded] = probes.width, probes.height, probes.state
    quarantine = {int(encoded[index]): reason for index, reason in probes.quarantine.items()}
    return Probes(length, width, height, state, quarantine)


def _probe_chunk(task: _Task) -> tuple[int, Probes, dict[int, Native]]:
    """The number of the first row, and the probes of a task and what has channels of its own; rows count from 0."""
    lengths = task.lengths or [-1] * len(task.names)
    places = list(zip(task.names, task.offsets, lengths, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about broken metadata; the probe reports what matters
        if task.check == HEADERS and len(places) > CHUNK and task.bands is None:
            parts = [places[first : first + CHUNK] for first in range(0, len(places), CHUNK)]
            with ThreadPoolExecutor(READERS) as pool:
                found = list(chain.from_iterable(pool.map(partial(_probe_places, task), parts)))
        else:
            found = _probe_places(task, places)
    probes = Probes(
        length=np.array([length for length, _, _ in found], np.int64),
        width=np.array([image.width for _, image, _ in found], np.int32),
        height=np.array([image.height for _, image, _ in found], np.int32),
        state=np.array([image.state for _, image, _ in found], np.uint8),
        quarantine={row: image.reason for row, (_, image, _) in enumerate(found) if image.state == State.QUARANTINED},
    )
    return task.first, probes, {row: native for row, (_, _, native) in enumerate(found) if native is not None}


def _probe_places(task: _Task, places: list[tuple[str, int, int]]) -> list[tuple[int, Probe, Native | None]]:
    """Length in bytes, probe, and what has channels of its own, of each place (see `read_place`)."""
    probes: list[tuple[int, Probe, Native | None]] = []
    channels, layout, most = task.choice.channels, task.choice.layout, scanned_pixels(task.choice)
    by_headers = task.check == HEADERS and channels in (AUTO, RGB) and task.bands is None
    for row, (name, offset, length) in enumerate(places):
        try:
            if by_headers and not is_inside(name):
                with open_file(os.path.join(task.root, name)) as file:
                    if channels == RGB or not may_be_deep(pread(file.fileno(), DEEP_HEAD, offset)):
                        whole_file = None if length < 0 else length
                        probes.append((*probe_headers(file.fileno(), offset, whole_file, most), None))
                        continue
            data = whole = read_place(task.root, name, offset, length)
            if task.bands is not None:
                whole = packed([data, *(read_place(task.root, *place) for place in task.bands[row])])
        except (OSError, BadImage) as error:
            reason = error.reason if isinstance(error, BadImage) else "unreadable"
            probes.append((max(length, 0), Probe(0, 0, State.QUARANTINED, reason), None))
            continue
        probes.append((len(data) if length < 0 else length, *look(whole, channels, layout, most)))
    return probes
