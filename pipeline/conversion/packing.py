"""The unit of work of a conversion: one part, which packs some rows of a source into one file.

`make_part` is a pure function of its task: the same rows and options give the same bytes in any process and on any
machine of a cluster. It writes under a temporary name, syncs and renames, the record last. So a part is complete or
does not exist, and a second run keeps it if its digest is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from common.files import NPZ_DAMAGE, replacing, sha256, sync, sync_file
from pipeline.conversion.channels.store import stored
from pipeline.conversion.entries import Entries
from pipeline.conversion.recordio_writer import RecordIOFile, without_marks
from pipeline.conversion.rewrite import Options, Rewritten
from pipeline.conversion.spool import NO_IMAGE
from pipeline.conversion.tfrecord_writer import TFRecordFile
from pipeline.dataset.images import BadImage
from pipeline.dataset.inside.names import file_of
from pipeline.dataset.shards import Record, Shard
from pipeline.dataset.table import DatasetError, Names

CHUNK = 16  # images per read
COLUMNS = {
    "rows": np.int64, "offset": np.int64, "length": np.int64,
    "width": np.int32, "height": np.int32, "label": np.int32, "state": np.uint8,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Task:
    """A part to make: `rows` (n,) of the source, and their n `entries` in the same order.

    folder: of the unfinished conversion, shared by all its processes; name: of the part's file, without suffix.
    joined: the unfinished .beton that a killed run has perhaps copied this part to, and (start, bytes) of its pieces.
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
    """The record of a part: the columns of a sample table, a row per written image, and `rows`, its row in the source.

    files: name in `data` -> (bytes, SHA-256); kinds: kind of change -> number of images; bad: row of the source ->
    reason, for images that could not be read.
    """

    columns: dict[str, NDArray[Any]]
    files: dict[str, tuple[int, str]]
    kinds: dict[str, int]
    bad: dict[int, str]


def make_part(task: Task) -> int:
    """Make one part, unless it exists and is complete; returns the number of its source images."""
    if not _is_complete(task):
        _make(task)
    return len(task.rows)


def record_path(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number:06d}.npz"


def select_rows(entries: Entries, rows: Int64[np.ndarray, " n"]) -> Entries:
    """The entries of `rows` alone, small enough to send to another process."""
    bands = None if entries.bands is None else entries.bands[rows]
    files = entries.file[rows] if bands is None else np.append(entries.file[rows], bands[..., 0])
    used, file = np.unique(files, return_inverse=True)
    if bands is not None:
        bands = np.concatenate([file[len(rows) :].reshape(*bands.shape[:2], 1), bands[..., 1:]], axis=-1)
    return replace(
        entries,
        bands=bands,
        files=Names.of(entries.files[index] for index in used),
        keys=Names.of(entries.keys[row] for row in rows),
        file=file[: len(rows)].astype(np.int32),
        **{name: getattr(entries, name)[rows] for name in ("offset", "length", "label", "shape")},
        refused={},
        left_out={},
    )


# ---------------------------------------------------------------------------------------------- one part


def _make(task: Task) -> None:
    data = task.folder / "data"
    temporary = task.folder / "making" / uuid.uuid4().hex  # two machines may work on the same part for a while
    temporary.mkdir()
    try:
        part = _write_part(task, temporary)
        for name in sorted(part.files):
            os.replace(temporary / name, data / name)
        sync(data)
        _save(part, record_path(task.folder, task.number))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_part(task: Task, folder: Path) -> Part:
    """Write the part's file to `folder` and return its record."""
    entries, options = task.entries, task.options
    file = _open(folder / task.name, options.format, entries.classes)
    written: list[tuple[int, ...]] = []
    kinds: Counter[str] = Counter()
    bad: dict[int, str] = {}
    for index, data in enumerate(_bytes(entries)):
        row, label = int(task.rows[index]), int(entries.label[index])
        try:
            if isinstance(data, BadImage):
                raise data
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's warnings about broken metadata
                image = stored(data, tuple(entries.shape[index].tolist()), entries.pixels, options)
            if options.format == "recordio":
                image = image._replace(data=without_marks(image.data))
        except BadImage as error:
            bad[row] = error.reason
            continue
        offset = file.add(image, entries.keys[index], label)
        kinds.update(image.kinds)
        written.append((row, offset, len(image.data), image.width, image.height, label, image.state))
    columns = np.array(written, np.int64).reshape(-1, len(COLUMNS)).T
    return Part(
        columns={name: column.astype(dtype) for (name, dtype), column in zip(COLUMNS.items(), columns, strict=True)},
        files={path.name: (path.stat().st_size, digest) for path, digest in file.close().items()},
        kinds=dict(sorted(kinds.items())),
        bad=bad,
    )


def _bytes(entries: Entries) -> Iterator[bytes | BadImage]:
    """The bytes of each entry, in order; a BadImage for those that cannot be read."""
    for first in range(0, len(entries), CHUNK):
        rows = range(first, min(first + CHUNK, len(entries)))
        try:
            chunk: list[bytes | BadImage] = [*entries.read(rows)]
        except (OSError, BadImage):  # of one of them
            chunk = [_read_one(entries, row) for row in rows]
        for row, data in zip(rows, chunk, strict=True):
            if isinstance(data, bytes) and data.startswith(NO_IMAGE):
                yield BadImage(data.removeprefix(NO_IMAGE).decode())
            elif not data and not os.access(entries.root / file_of(entries.files[entries.file[row]]), os.R_OK):
                yield BadImage("unreadable")
            else:
                yield data


def _read_one(entries: Entries, row: int) -> bytes | BadImage:
    try:
        return entries.read([row])[0]
    except BadImage as error:
        return error
    except OSError:
        return BadImage("unreadable")


def _open(path: Path, kind: str, classes: tuple[str, ...]) -> _Blobs | _Tar | TFRecordFile | RecordIOFile | _NoFile:
    """The part's file of format `kind`; path: without suffix."""
    if kind == "beton":
        return _Blobs(path.with_name(path.name + ".blobs"))
    if kind == "wds":
        return _Tar(path.with_name(path.name + ".tar"))
    if kind == "tfrecord":
        return TFRecordFile(path.with_name(path.name + ".tfrecord"), classes)
    return RecordIOFile(path.with_name(path.name + ".rec")) if kind == "recordio" else _NoFile()


class _Blobs:
    """A part of a .beton: blobs without gaps."""

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
    """A WebDataset shard with its index; a part without images has neither."""

    def __init__(self, path: Path) -> None:
        self.path, self.shard = path, Shard(path)

    def add(self, image: Rewritten, key: str, label: int) -> int:
        return self.shard.add(Record(key, image.data, image.suffix, label))[0]

    def close(self) -> dict[Path, str]:
        digest, index = self.shard.close(), self.path.with_suffix(".idx")
        return {self.path: digest, index: sha256(index)} if self.shard.index else {}


class _NoFile:
    """An index writes no image bytes: they stay in the source."""

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
    """The record that `_save` wrote. Raises DatasetError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            texts = json.loads(stored["texts"].tobytes())
            return Part(
                columns={name: stored[name] for name in COLUMNS},
                files={name: (size, digest) for name, (size, digest) in texts["files"].items()},
                kinds=texts["kinds"],
                bad=dict(zip(stored["bad"].tolist(), Names(stored["reasons"].tobytes()), strict=True)),
            )
    except NPZ_DAMAGE as error:
        raise DatasetError(f"{path}: damaged record of a part ({' '.join(str(error).split())[:200]})") from None


def _is_complete(task: Task) -> bool:
    """Whether the part exists with the right bytes, in its own file or joined already."""
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
