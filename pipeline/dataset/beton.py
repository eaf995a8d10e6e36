"""FFCV's .beton, format version 2, read without FFCV: where each image lies, its mode, size and label.

    header | field descriptors | a record per sample | pages with the images | allocation table

Importing ffcv would bring torch and a compiler; the format is these five numpy types (a test compares them with
FFCV's own).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64
from numpy.typing import NDArray

from pipeline.dataset.folder import probe_rows
from pipeline.dataset.table import DatasetError, Names, SampleTable, State

VERSION = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", (16,)), ("arguments", "<u1", (1024,))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])
INTEGER = np.dtype("<i8")
# By type_id: float, integer, RGB image, bytes, array, JSON, tensor; 255 is a class of the writer's own.
RECORDS = [np.dtype("<f8"), INTEGER, IMAGE, BYTES, np.dtype("<u8"), BYTES, np.dtype("<u8")]
INT, RGB = 1, 2
JPG, RAW = 0, 1  # modes of an image


@dataclass(frozen=True, eq=False)
class BetonFile:
    """What a .beton holds, N samples.

    offset, length: (N,) int64, the image's bytes in the file; raw: (N,) bool, height x width x 3 RGB instead of a JPEG.
    width, height: (N,) int32 pixels; label: (N,) int32 of the integer field 'label' or else the first one, -1 where
    there is none or its numbers are no labels. fields: names, in order.
    digest: SHA-256 of all but the images: size, fields, records and allocation table.
    """

    path: Path
    offset: Int64[np.ndarray, " n"]
    length: Int64[np.ndarray, " n"]
    raw: Bool[np.ndarray, " n"]
    width: Int32[np.ndarray, " n"]
    height: Int32[np.ndarray, " n"]
    label: Int32[np.ndarray, " n"]
    fields: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.offset)

    def fingerprint(self) -> str:
        """Changes when the file does, but not when it is copied, moved or touched."""
        return self.digest


def read_beton(path: Path) -> BetonFile:
    """Read everything of a .beton but its images. Raises DatasetError where it is none, unfinished or damaged."""
    name = Path(path).name
    try:
        with open(path, "rb") as file:
            return _read(file, Path(path), name)
    except OSError as error:
        raise DatasetError(f"{name}: cannot be read ({error.strerror}); copy it anew") from None


def _read(file: IO[bytes], path: Path, name: str) -> BetonFile:
    size = os.fstat(file.fileno()).st_size
    mend = "write or copy it anew"
    header = _array(file, HEADER, 1, size, name)[0]
    if header["version"] != VERSION:
        raise DatasetError(f"{name}: no .beton of FFCV's format 2 (it says {header['version']}); {mend}")
    if not header["alloc_table_ptr"]:
        raise DatasetError(f"{name}: its writer was killed before the end; {mend}")
    described = _array(file, FIELD, int(header["num_fields"]), size, name)
    fields = tuple(bytes(text).split(b"\0")[0].decode("ascii", "replace") for text in described["name"])
    kinds = described["type_id"].tolist()
    if RGB not in kinds:
        raise DatasetError(f"{name}: none of its fields ({', '.join(fields)}) is an RGBImageField; write it with one")
    own = [field for field, kind in zip(fields, kinds, strict=True) if kind >= len(RECORDS)]
    if own:
        raise DatasetError(
            f"{name}: field {own[0]!r} is of a class that FFCV does not have; write it without this field"
        )
    record = np.dtype([(f"f{index}", RECORDS[kind]) for index, kind in enumerate(kinds)], align=True)
    records = _array(file, record, int(header["num_samples"]), size, name)
    file.seek(int(header["alloc_table_ptr"]))
    entries, rest = divmod(size - int(header["alloc_table_ptr"]), ALLOCATION.itemsize)
    if entries < 0 or rest:
        raise DatasetError(f"{name}: cut short ({size} bytes); {mend}")
    table = _array(file, ALLOCATION, entries, size, name)
    digest = hashlib.sha256(str(size).encode())
    for part in (header, described, records, table):
        digest.update(part.tobytes())

    image = records[f"f{kinds.index(RGB)}"]
    offset, length = image["data_ptr"].astype(np.int64), _sizes(image["data_ptr"], table)
    raw, pixels = image["mode"] == RAW, 3 * image["width"].astype(np.int64) * image["height"]
    wrong = (image["mode"] > RAW) | (offset < 0) | (length < 0) | (offset + length > size) | (raw & (length != pixels))
    if wrong.any():
        raise DatasetError(f"{name}: damaged (sample {int(wrong.argmax())} has no bytes in the file); {mend}")
    return BetonFile(
        path, offset, length, raw, image["width"].astype(np.int32), image["height"].astype(np.int32),
        _labels(records, kinds, fields), fields, digest.hexdigest(),
    )  # fmt: skip


def table_beside(found: BetonFile) -> SampleTable | None:
    """The table that conversion wrote beside a .beton (`train.beton`, `train.npz`); None if there is none of this file.

    Compared column by column, so a table stays good when both are copied.
    """
    try:
        table = SampleTable.load(found.path.with_suffix(".npz"))
    except DatasetError:
        return None
    alike = ((table.offset, found.offset), (table.length, found.length), (table.label, found.label))
    if list(table.containers) != [found.path.name] or not all(np.array_equal(*pair) for pair in alike):
        return None
    if not np.array_equal(table.state == State.RAW, found.raw & (table.state != State.QUARANTINED)):
        return None
    return replace(table, root=found.path.parent)


def scan_beton(found: BetonFile, workers: int = 1, progress: bool = True) -> SampleTable:
    """Decode every JPEG of a .beton once and give its table, a row per sample; raw pixels need no decoding."""
    rows, jpegs = len(found), np.flatnonzero(~found.raw)
    length, width, height, label = found.length, found.width.copy(), found.height.copy(), found.label
    state = np.full(rows, State.RAW, np.uint8)
    container, names = np.zeros(rows, np.int32), Names.of([found.path.name])
    probes = probe_rows(
        found.path.parent, names, container[jpegs], found.offset[jpegs], length[jpegs], workers, progress,
    )  # fmt: skip
    width[jpegs], height[jpegs], state[jpegs] = probes.width, probes.height, probes.state
    quarantine = {int(jpegs[index]): reason for index, reason in probes.quarantine.items()}
    empty = np.flatnonzero((state == State.RAW) & (length == 0))
    state[empty] = State.QUARANTINED
    quarantine |= dict.fromkeys(empty.tolist(), "zero bytes")
    return SampleTable(
        found.path.parent, names, container, found.offset, length, width, height, label, state,
        quarantine=quarantine, fingerprint=found.digest,
    )  # fmt: skip


def _array(file: IO[bytes], dtype: np.dtype, count: int, size: int, name: str) -> NDArray:
    """The next `count` elements. Asked before memory is: a damaged header may promise any number."""
    if file.tell() + count * dtype.itemsize > size:
        raise DatasetError(f"{name}: no .beton, or cut short ({size} bytes); write or copy it anew")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _sizes(pointers: UInt64[np.ndarray, " n"], table: NDArray) -> Int64[np.ndarray, " n"]:
    """Bytes at each pointer by the allocation table, -1 where it has no such entry; (n,) int64."""
    if not len(table):
        return np.full(len(pointers), -1, np.int64)
    order = np.argsort(table["ptr"], kind="stable")
    place = np.searchsorted(table["ptr"], pointers, sorter=order).clip(max=len(table) - 1)
    found = table[order[place]]
    return np.where(found["ptr"] == pointers, found["size"].astype(np.int64), -1)


def _labels(records: NDArray, kinds: list[int], fields: tuple[str, ...]) -> Int32[np.ndarray, " n"]:
    integers = [index for index, kind in enumerate(kinds) if kind == INT]
    integers.sort(key=lambda index: fields[index] != "label")
    values = records[f"f{integers[0]}"] if integers else np.full(len(records), -1)
    if len(values) and (values.min() < -1 or values.max() >= 2**31):  # a number of another kind: an id, a time
        values = np.full(len(records), -1)
    return values.astype(np.int32)
