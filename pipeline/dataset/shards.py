"""WebDataset tar shards: reads them, and writes them with DALI's index and a sample table.

A shard is an uncompressed tar of `key.jpg` (or another image suffix) and, for an image with a label, `key.cls` with
the class as text. Images are read by byte range in any order, so a global shuffle needs only a few large files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import locked, sync, sync_file
from common.progress import progress_bar
from pipeline.dataset.finding.choice import NOT_CHOSEN, Choice
from pipeline.dataset.folder import RGB_ONLY, Listing, probe_rows
from pipeline.dataset.table import DECODE, DatasetError, SampleTable
from pipeline.dataset.tar_images import list_shards, tar_images
from pipeline.dataset.tars import BLOCK
from pipeline.remote.probes import kept_probes


class Record(NamedTuple):
    """An image to pack: key (no dot or blank in its last part), encoded bytes, suffix without dot, label or -1."""

    key: str
    data: bytes
    suffix: str
    label: int


def scan_shards(
    paths: Sequence[Path],
    workers: int = 1,
    progress: bool = True,
    listing: tuple[Path, Listing] | None = None,
    choice: Choice = NOT_CHOSEN,
    check: str = DECODE,
) -> SampleTable:
    """The table of the shards, a row per image in order of shard and offset; checks every image once.

    listing: from `list_shards`, if the caller has it. check: see `SampleTable`. Raises DatasetError, as `tar_images`
    does.
    """
    root, shards = list_shards(paths) if listing is None else listing
    images = tar_images(root, shards.names, choice, workers, progress)
    columns = np.stack([images.file, images.offset, images.length, images.label])
    table = _table(root, shards.names, columns, images.classes, workers, progress, check, choice, images.bands)
    left_out = Counter(images.left_out) + Counter(images.refused.values())
    return replace(table, fingerprint=shards.fingerprint(), left_out=dict(left_out.most_common()))


def _table(
    root: Path,
    names: Sequence[str],
    columns: NDArray[np.int64],
    classes: tuple[str, ...],
    workers: int,
    progress: bool,
    check: str = DECODE,
    choice: Choice = RGB_ONLY,
    bands: NDArray[np.int64] | None = None,
) -> SampleTable:
    """The table of N byte ranges; `columns`: (4, N) int64 container, offset, length, label."""
    container, offset, length, label = columns[0].astype(np.int32), columns[1], columns[2], columns[3]
    probes = kept_probes(root, names, container, offset, bands)
    if probes is None:
        probes = probe_rows(
            root, names, container, offset, length, workers, progress, check=check, choice=choice, bands=bands
        )
    return SampleTable(
        root, names, container, offset, label=label.astype(np.int32), classes=classes, check=check, bands=bands,
        **probes._asdict(),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- writing


def pack(
    records: Iterable[Record | tuple[str, bytes, str, int]],
    out: Path,
    prefix: str,
    classes: tuple[str, ...] = (),
    max_bytes: int = 1 << 30,
    max_count: int | None = None,
    workers: int = 1,
    progress: bool = False,
    total: int | None = None,
) -> SampleTable:
    """Write `records` to the new folder `out`: shards `<prefix>-000000.tar`, ..., each with its `.idx`, and a table.

    A shard ends before it exceeds `max_bytes` or `max_count` images. The same records give the same bytes. Everything
    is written next to `out` and renamed at the end, so `out` is complete or does not exist. Raises DatasetError.
    """
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DatasetError(f"{out}: already exists; remove it or give another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with locked(out.with_name(f".{out.name}.lock")):
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
        partial.mkdir()
        try:
            with progress_bar(total, f"packing {out.name}", "img", progress) as bar:
                counted = _counted(records, bar)
                names, digests, columns = _write_shards(counted, partial, prefix, max_bytes, max_count)
            if not names:
                raise DatasetError(f"{out}: no images to pack")
            table = _table(partial, names, columns, classes, workers, progress)
            table.save(partial / "table.npz", digests)
            sync(partial)
            os.rename(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # exists only after a failure
        sync(out.parent)
    return replace(table, root=out)


def _counted(records: Iterable[Record | tuple[str, bytes, str, int]], bar: Any) -> Iterator[Record]:
    for record in records:
        yield Record(*record)
        bar.update()


def _write_shards(
    records: Iterator[Record], folder: Path, prefix: str, max_bytes: int, max_count: int | None
) -> tuple[list[str], dict[str, str], NDArray[np.int64]]:
    """Names of the shards, SHA-256 by name, and (4, N) container, offset, length, label."""
    names: list[str] = []
    digests: dict[str, str] = {}
    rows: list[tuple[int, int, int, int]] = []
    shard: Shard | None = None
    for record in records:
        _check(record)
        size = len(record.data) + 4 * BLOCK
        full = shard and (shard.position + size > max_bytes or (max_count and len(shard.index) >= max_count))
        if shard is None or full:
            if shard:
                digests[names[-1]] = shard.close()
            names.append(f"{prefix}-{len(names):06d}.tar")
            shard = Shard(folder / names[-1])
        rows.append((len(names) - 1, *shard.add(record), record.label))
    if shard:
        digests[names[-1]] = shard.close()
    return names, digests, np.array(rows, np.int64).reshape(-1, 4).T


def _check(record: Record) -> None:
    base = record.key.rpartition("/")[2]
    if not base or "." in base or " " in record.key or not record.key.isprintable():
        raise DatasetError(f"key {record.key!r}: a WebDataset key is a file name without dots and blanks")
    if not record.suffix.isalnum() or record.label < -1:
        raise DatasetError(f"key {record.key!r}: bad suffix {record.suffix!r} or label {record.label}")


class Shard:
    """A tar that is being written, its digest, and the lines of its index."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        self.index: list[str] = []
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115
        self._digest = hashlib.sha256()

    def add(self, record: Record) -> tuple[int, int]:
        """Append the image and its label; returns offset and length of the image."""
        offset, line = self._member(record.key, record.suffix, record.data)
        if record.label >= 0:
            line += " " + self._member(record.key, "cls", b"%d" % record.label)[1]
        self.index.append(line)
        return offset, len(record.data)

    def _member(self, key: str, suffix: str, data: bytes) -> tuple[int, str]:
        name = f"{key}.{suffix}"
        self._write(_header(name, len(data)) + data + bytes(-len(data) % BLOCK))
        offset = self.position - len(data) - -len(data) % BLOCK
        return offset, f"{suffix} {offset} {len(data)} {name}"

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.position += len(data)

    def close(self) -> str:
        """Finish the tar and write its index in the format of DALI's wds2idx; returns the tar's SHA-256."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.position % (20 * BLOCK)))  # tar pads to records of 20 blocks
        with self._file:
            sync_file(self._file)
        with open(self.path.with_suffix(".idx"), "w", encoding="utf-8") as file:
            file.write("\n".join([f"v1.2 {len(self.index)}", *self.index]) + "\n")
            sync_file(file)
        return self._digest.hexdigest()


def _header(name: str, size: int) -> bytes:
    """A ustar header without time and owner, so that it never varies. (tarfile takes 60 us for it.)"""
    folder, raw = b"", name.encode()
    if len(raw) > 100:
        cut = raw.find(b"/", len(raw) - 101)
        folder, raw = raw[:cut], raw[cut + 1 :]
        if cut <= 0 or len(folder) > 155:
            raise DatasetError(f"key of {name!r}: too long for a tar (100 bytes for the name, 155 for its folders)")
    start = raw.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    end = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + folder.ljust(167, b"\0")
    return start + b"%06o\0 " % (sum(start) + sum(end) + 8 * 32) + end
