"""The unit of work of a conversion: one part, some rows of a source made into one file.

`make_part` is a pure function of its task: the same rows and options give the same bytes in any process and on any
machine of a cluster. It writes under a temporary name, syncs and renames, its record last; so a part is there or not,
and a second run keeps it after comparing its digest.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from common.files import replacing, sha256, sync, sync_file
from pipeline.conversion.rewrite import Options, Rewritten, rewrite
from pipeline.conversion.sources import Entries
from pipeline.conversion.spool import ABSENT
from pipeline.dataset.images import BadImage
from pipeline.dataset.shards import Record, Shard
from pipeline.dataset.table import DatasetError, Names

CHUNK = 16  # images read at once
PR_SET_PDEATHSIG = 1  # of prctl(2): which signal comes when the parent dies
COLUMNS = {
    "rows": np.int64, "offset": np.int64, "length": np.int64,
    "width": np.int32, "height": np.int32, "label": np.int32, "state": np.uint8,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Task:
    """A part to be made: `rows` (n,) of the source, whose bytes `entries` names (n entries, in the same order).

    folder: of the unfinished conversion, shared by all who work on it; name: of the part's file without suffix.
    joined: the file that holds this part already, and where its pieces are (start, bytes), if a killed run had come so
    far.
    """

    folder: Path
    number: int
    name: str
    rows: Int64[np.ndarray, " n"]
    entries: Entries
    options: Options
    joined: tuple[Path, list[tuple[int, int]]] | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """What a part holds: columns as in a sample table, a row per image written, and `rows`, where it was in the source.

    files: name in `data` -> (bytes, SHA-256); kinds: images changed on the way by kind; bad: row of the source ->
    reason, for those left out.
    """

    columns: dict[str, NDArray[Any]]
    files: dict[str, tuple[int, str]]
    kinds: dict[str, int]
    bad: dict[int, str]


def make_part(task: Task) -> int:
    """Make one part, unless it is there and whole; the number of source images in it."""
    started_by = multiprocessing.parent_process()
    if started_by is not None and started_by.pid is not None:
        _end_with_parent(started_by.pid)
    if not _is_whole(task):
        _make(task)
    return len(task.rows)


def record_path(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number:06d}.npz"


def take(entries: Entries, rows: Int64[np.ndarray, " n"]) -> Entries:
    """The entries of some rows, small enough to be sent to another process."""
    used, file = np.unique(entries.file[rows], return_inverse=True)
    return replace(
        entries,
        files=Names.of(entries.files[index] for index in used),
        keys=Names.of(entries.keys[row] for row in rows),
        file=file.astype(np.int32),
        **{name: getattr(entries, name)[rows] for name in ("offset", "length", "label", "shape")},
        classes=(),
        refused={},
        left_out={},
    )


# ---------------------------------------------------------------------------------------------- one part


def _make(task: Task) -> None:
    data = task.folder / "data"
    temporary = task.folder / "making" / uuid.uuid4().hex  # two machines may work on one part, for a while
    temporary.mkdir()
    try:
        part = _filled(task, temporary)
        for name in sorted(part.files):
            os.replace(temporary / name, data / name)
        sync(data)
        _save(part, record_path(task.folder, task.number))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _filled(task: Task, folder: Path) -> Part:
    """Write the part's file into `folder`."""
    entries, options = task.entries, task.options
    file: _Blobs | _Tar | _Nothing
    if options.format == "beton":
        file = _Blobs(folder / f"{task.name}.blobs")
    else:
        file = _Tar(folder / f"{task.name}.tar") if options.format == "wds" else _Nothing()
    found: list[tuple[int, ...]] = []
    kinds: Counter[str] = Counter()
    bad: dict[int, str] = {}
    for index, data in enumerate(_bytes(entries)):
        row, label = int(task.rows[index]), int(entries.label[index])
        try:
            if isinstance(data, BadImage):
                raise data
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on broken metadata
                image = rewrite(data, tuple(entries.shape[index].tolist()), options)
        except BadImage as error:
            bad[row] = error.reason
            continue
        offset = file.add(image, entries.keys[index], label)
        kinds.update(image.kinds)
        found.append((row, offset, len(image.data), image.width, image.height, label, image.state))
    columns = np.array(found, np.int64).reshape(-1, len(COLUMNS)).T
    return Part(
        columns={name: column.astype(dtype) for (name, dtype), column in zip(COLUMNS.items(), columns, strict=True)},
        files={path.name: (path.stat().st_size, digest) for path, digest in file.close().items()},
        kinds=dict(sorted(kinds.items())),
        bad=bad,
    )


def _bytes(entries: Entries) -> Iterator[bytes | BadImage]:
    """The bytes of each entry in order; what cannot be read is 'unreadable' and disturbs no other."""
    for first in range(0, len(entries), CHUNK):
        rows = range(first, min(first + CHUNK, len(entries)))
        try:
            found: list[bytes | BadImage] = [*entries.read(rows)]
        except OSError:  # the storage fails at one of them
            found = [_one(entries, row) for row in rows]
        for row, data in zip(rows, found, strict=True):
            gone = not data and not os.access(entries.root / entries.files[entries.file[row]], os.R_OK)
            yield (
                BadImage("unreadable") if gone else BadImage("not in the file (path only)") if data == ABSENT else data
            )


def _one(entries: Entries, row: int) -> bytes | BadImage:
    try:
        return entries.read([row])[0]
    except OSError:
        return BadImage("unreadable")


class _Blobs:
    """Part of a .beton: blobs one after the other."""

    def __init__(self, path: Path) -> None:
        self.path, self.position, self.digest = path, 0, hashlib.sha256()
        self.file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115

    def add(self, image: Rewritten, key: str, label: int) -> int:
        self.file.write(image.data)
        self.digest.update(image.data)
        self.position += len(image.data)
        return self.position - len(image.data)

    def close(self) -> dict[Path, str]:
        with self.file:
            sync_file(self.file)
        return {self.path: self.digest.hexdigest()}


class _Tar:
    """A WebDataset shard with its index; neither is written for no image at all."""

    def __init__(self, path: Path) -> None:
        self.path, self.shard = path, Shard(path)

    def add(self, image: Rewritten, key: str, label: int) -> int:
        return self.shard.add(Record(key, image.data, image.suffix, label))[0]

    def close(self) -> dict[Path, str]:
        digest, index = self.shard.close(), self.path.with_suffix(".idx")
        return {self.path: digest, index: sha256(index)} if self.shard.index else {}


class _Nothing:
    """Of an index no bytes are written: they stay where they are."""

    def add(self, image: Rewritten, key: str, label: int) -> int:
        return 0

    def close(self) -> dict[Path, str]:
        return {}


# ---------------------------------------------------------------------------------------------- records


def _save(part: Part, path: Path) -> None:
    texts = {"files": part.files, "kinds": part.kinds}
    with replacing(path) as file:
        np.savez(
            file,
            bad=np.fromiter(part.bad, np.int64, len(part.bad)),
            reasons=np.frombuffer(Names.of(part.bad.values()).blob, np.uint8),
            texts=np.frombuffer(json.dumps(texts).encode(), np.uint8),
            **part.columns,  # type: ignore[arg-type]
        )


def load_part(path: Path) -> Part:
    """The record of a part that is there. Raises DatasetError."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            texts = json.loads(stored["texts"].tobytes())
            return Part(
                columns={name: stored[name] for name in COLUMNS},
                files={name: (size, digest) for name, (size, digest) in texts["files"].items()},
                kinds=texts["kinds"],
                bad=dict(zip(stored["bad"].tolist(), Names(stored["reasons"].tobytes()), strict=True)),
            )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise DatasetError(f"{path}: no sound record of a part ({' '.join(str(error).split())})") from None


def _is_whole(task: Task) -> bool:
    """Whether the part was made before and its bytes are the same still, in its own file or joined already."""
    try:
        part = load_part(record_path(task.folder, task.number))
        for name, (size, digest) in part.files.items():
            path, pieces = task.folder / "data" / name, [(0, size)]
            if not path.exists() and task.joined:
                path, pieces = task.joined
            elif path.stat().st_size != size:
                return False
            if _digest_of(path, pieces) != digest:
                return False
    except (DatasetError, OSError):
        return False
    return True


def _digest_of(path: Path, pieces: list[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for start, size in pieces:
            file.seek(start)
            while size and (data := file.read(min(size, 1 << 22))):
                digest.update(data)
                size -= len(data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- processes


@cache
def _end_with_parent(parent: int) -> None:
    """A worker of a killed conversion would wait for its next task for ever, and meet the next conversion's workers.

    Ctrl-C goes to all processes of a terminal; it is the parent that ends the others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)
