"""Reads FFCV's .beton, format version 2, without FFCV: each image's byte range, mode, size and label.

    header | field descriptors | a record per sample | pages with the images | allocation table

Importing ffcv would load torch and need a compiler. The format is the numpy types below, which a test compares with
FFCV's own.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64
from numpy.typing import NDArray

from common.holes import open_file, pread
from pipeline.dataset.channels.array_field import image_format, type_and_shape
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.channels.samples import scanned_samples
from pipeline.dataset.finding.choice import LABELS, NOT_CHOSEN, Choice, chosen_image, chosen_label
from pipeline.dataset.finding.labels import class_names, label_of, numbered
from pipeline.dataset.folder import probe_encoded
from pipeline.dataset.table import DECODE, DatasetError, Names, SampleTable, State
from pipeline.remote.probes import kept_probes

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
# By type_id: float, integer, RGB image, bytes, array, JSON, tensor. 255 is a class that the writer defined.
RECORDS = [np.dtype("<f8"), INTEGER, IMAGE, BYTES, np.dtype("<u8"), BYTES, np.dtype("<u8")]
FLOAT, INT, RGB, BYTES_KIND, ARRAY, JSON, TENSOR = range(7)
JPG, RAW = 0, 1  # modes of an image


@dataclass(frozen=True, eq=False)
class BetonFile:
    """The index of a .beton with N samples.

    offset, length: (N,) int64, the image's byte range in the file.
    raw: (N,) bool, True for height x width x 3 RGB pixels, False for a JPEG.
    width, height: (N,) int32 pixels.
    label: (N,) int32, -1 without; classes: its names, () if the labels are numbers. `pipeline.dataset.finding.choice`
    says which fields are taken. fields: names of all fields, in order; image: that of the images; left_out: how many
    values the fields have that are neither image nor label, by 'field NAME'.
    pixels: the format of an array field; COLOR of a field of pictures.
    only_images: whether its pages hold nothing but these images: the other fields are numbers.
    digest: SHA-256 of everything but the images: file size, fields, records and allocation table.
    """

    path: Path
    offset: Int64[np.ndarray, " n"]
    length: Int64[np.ndarray, " n"]
    raw: Bool[np.ndarray, " n"]
    width: Int32[np.ndarray, " n"]
    height: Int32[np.ndarray, " n"]
    label: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]
    fields: tuple[str, ...]
    image: str
    digest: str
    left_out: dict[str, int]
    pixels: PixelFormat = COLOR
    only_images: bool = False

    def __len__(self) -> int:
        return len(self.offset)

    def fingerprint(self) -> str:
        """Changes when the content of the file changes, but not when it is copied, moved or touched."""
        return self.digest


def read_beton(path: Path, choice: Choice = NOT_CHOSEN) -> BetonFile:
    """Read everything but the images. Raises DatasetError if the file is no .beton, incomplete or damaged, or if it is
    not clear which fields are meant."""
    name = Path(path).name
    try:
        with open_file(path) as file:
            return _read(file, Path(path), name, choice)
    except OSError as error:
        raise DatasetError(f"{name}: cannot be read ({error.strerror}); copy it again") from None


def _read(file: IO[bytes], path: Path, name: str, choice: Choice) -> BetonFile:
    size = os.fstat(file.fileno()).st_size
    advice = "write or copy it again"
    header = _array(file, HEADER, 1, size, name)[0]
    if header["version"] != VERSION:
        raise DatasetError(f"{name}: not FFCV's format 2 (its version field is {header['version']}); {advice}")
    if not header["alloc_table_ptr"]:
        raise DatasetError(f"{name}: its writer stopped before the end; {advice}")
    described = _array(file, FIELD, int(header["num_fields"]), size, name)
    fields = tuple(bytes(text).split(b"\0")[0].decode("ascii", "replace") for text in described["name"])
    kinds = described["type_id"].tolist()
    arrays = _image_arrays(described, kinds, fields, choice)
    if RGB not in kinds and not arrays:
        problem = f"it has no RGBImageField and no array of 2 or 3 axes (its fields: {', '.join(fields)})"
        raise DatasetError(f"{name}: {problem}; write it with one")
    unknown = [field for field, kind in zip(fields, kinds, strict=True) if kind >= len(RECORDS)]
    if unknown:
        raise DatasetError(f"{name}: FFCV has no class for the field {unknown[0]!r}; write the file without it")
    record = np.dtype([(f"f{index}", RECORDS[kind]) for index, kind in enumerate(kinds)], align=True)
    records = _array(file, record, int(header["num_samples"]), size, name)
    entries, rest = divmod(size - int(header["alloc_table_ptr"]), ALLOCATION.itemsize)
    if entries < 0 or rest:
        raise DatasetError(f"{name}: cut short ({size} bytes); {advice}")
    file.seek(int(header["alloc_table_ptr"]))
    table = _array(file, ALLOCATION, entries, size, name)
    digest = hashlib.sha256(str(size).encode())
    for part in (header, described, records, table):
        digest.update(part.tobytes())

    pictures = [field for field, kind in zip(fields, kinds, strict=True) if kind == RGB]
    named = choice.image in arrays  # beside pictures an array is usually something else
    chosen = chosen_image([*arrays] if named or not pictures else pictures, choice)
    image = records[f"f{fields.index(chosen)}"]
    if chosen in arrays:
        pixels, *sides = arrays[chosen]
        columns = image, np.zeros(len(image), bool), *(np.full(len(image), side) for side in sides)
    else:
        pixels, columns = COLOR, (image["data_ptr"], image["mode"] == RAW, image["height"], image["width"])
    pointer, raw, height, width = columns
    offset, length = pointer.astype(np.int64), _sizes(pointer, table)
    outside = (offset < 0) | (length < 0) | (offset + length > size)
    samples = pixels.channels * height.astype(np.int64) * width * (np.dtype(pixels.stored or "u1").itemsize)
    modes = image["mode"] > RAW if pixels is COLOR else False
    damaged = outside | modes | ((raw | pixels.native) & (length != samples))
    if damaged.any():
        raise DatasetError(f"{name}: damaged (sample {int(damaged.argmax())} has no bytes in the file); {advice}")
    labels, label, classes = _labels(file, records, kinds, fields, choice, name)
    return BetonFile(
        path, offset, length, raw, width.astype(np.int32), height.astype(np.int32), label, classes, fields, chosen,
        digest.hexdigest() if choice[:2] == NOT_CHOSEN[:2] else f"{digest.hexdigest()} {choice[:2]}",
        {f"field {field}": len(records) for field in fields if field not in (chosen, labels)}, pixels,
        sorted(kinds)[-1] == RGB and kinds.count(RGB) == 1,
    )  # fmt: skip


def _image_arrays(
    described: NDArray, kinds: list[int], fields: tuple[str, ...], choice: Choice
) -> dict[str, tuple[PixelFormat, int, int]]:
    """Format, height and width of the array fields that can be images, by name."""
    found = {}
    for field, kind, row in zip(fields, kinds, described, strict=True):
        stated = type_and_shape(row["arguments"].tobytes()) if kind in (ARRAY, TENSOR) else None
        if stated and (about := image_format(*stated, choice.layout)):
            found[field] = about
    return found


def converted_table(beton: BetonFile, labels: bool = True) -> SampleTable | None:
    """The table that conversion wrote for a .beton (`train.npz` for `train.beton`); None if it is missing or differs.

    The columns are compared (with `labels` these too), so the table stays valid when both files are copied.
    """
    try:
        table = SampleTable.load(beton.path.with_suffix(".npz"))
    except DatasetError:
        return None
    pairs: list[tuple[np.ndarray, np.ndarray]] = [(table.offset, beton.offset), (table.length, beton.length)]
    pairs += [(table.label, beton.label)] if labels else []
    if (
        table.pixels.stored != beton.pixels.stored
        or list(table.containers) != [beton.path.name]
        or not all(np.array_equal(*pair) for pair in pairs)
    ):
        return None
    if not np.array_equal(table.state == State.RAW, beton.raw & (table.state != State.QUARANTINED)):
        return None
    return replace(table, root=beton.path.parent)


def scan_beton(
    beton: BetonFile, workers: int = 1, progress: bool = True, check: str = DECODE, choice: Choice = NOT_CHOSEN
) -> SampleTable:
    """The table of a .beton, a row per sample. Checks every JPEG once, in `workers` processes; raw pixels as is.
    check: see `SampleTable`; choice: of the most pixels."""
    container, names = np.zeros(len(beton), np.int32), Names.of([beton.path.name])
    columns = beton.path.parent, names, container, beton.offset, beton.length
    shape = np.stack([beton.height, beton.width], axis=1) * beton.raw[:, None]
    if beton.pixels.native:
        probes = scanned_samples(*columns, (beton.width, beton.height), beton.pixels, progress, check)
    else:
        probes = kept_probes(beton.path.parent, [beton.path.name], container, beton.offset) or probe_encoded(
            *columns, shape, workers, progress, check, choice
        )
    return SampleTable(
        beton.path.parent, names, container, beton.offset, label=beton.label, classes=beton.classes,
        fingerprint=beton.digest, left_out=beton.left_out, check=check, **probes._asdict(),
    )  # fmt: skip


def _array(file: IO[bytes], dtype: np.dtype, count: int, size: int, name: str) -> NDArray:
    """The next `count` elements. The file size limits them, since a damaged header may contain any number."""
    if file.tell() + count * dtype.itemsize > size:
        raise DatasetError(f"{name}: no .beton, or cut short ({size} bytes); write or copy it again")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _sizes(pointers: UInt64[np.ndarray, " n"], table: NDArray) -> Int64[np.ndarray, " n"]:
    """Bytes at each pointer by the allocation table, (n,) int64; -1 for a pointer that it does not list."""
    if not len(table):
        return np.full(len(pointers), -1, np.int64)
    order = np.argsort(table["ptr"], kind="stable")
    position = np.searchsorted(table["ptr"], pointers, sorter=order).clip(max=len(table) - 1)
    entry = table[order[position]]
    return np.where(entry["ptr"] == pointers, entry["size"].astype(np.int64), -1)


def _labels(
    file: IO[bytes], records: NDArray, kinds: list[int], fields: tuple[str, ...], choice: Choice, name: str
) -> tuple[str, Int32[np.ndarray, " n"], tuple[str, ...]]:
    """The field of labels, '' without; their numbers and names: of integers or floats, or of text (bytes, JSON)."""
    able = [index for index, kind in enumerate(kinds) if kind in (FLOAT, INT, BYTES_KIND, JSON)]
    numbers = [index for index in able if kinds[index] == INT and _in_range(records[f"f{index}"])]
    usual = [index for index in able if fields[index].lower() in LABELS or fields[index] == choice.label]
    guessed = usual or numbers
    unable = [field for index, field in enumerate(fields) if field.lower() in LABELS and index not in able]
    if unable and not usual and choice.label is None and kinds[fields.index(unable[0])] != RGB:
        problem = f"{name}: the field {unable[0]} holds arrays, which are no classes"
        raise DatasetError(f"{problem}; choose another with data.label, or data.label=none")
    field = chosen_label([fields[index] for index in guessed], choice, guess=True)
    if not field:
        return "", np.full(len(records), -1, np.int32), ()
    values, where = records[f"f{fields.index(field)}"], f"{name}: field {field}"
    if kinds[fields.index(field)] == INT:
        if not _in_range(values):
            problem = f"{where}: its values are no class numbers ({values.min()} to {values.max()})"
            raise DatasetError(f"{problem}; choose another with data.label, or data.label=none")
        return field, values.astype(np.int32), ()
    is_text = kinds[fields.index(field)] != FLOAT
    labels = [label_of(_text(file, value, where) if is_text else float(value), where) for value in values]
    classes = class_names(labels, f"{where}: ")
    return field, numbered(labels, classes), classes


def _in_range(values: NDArray) -> bool:
    return not len(values) or (values.min() >= -1 and values.max() < 2**31)


def _text(file: IO[bytes], value: NDArray, where: str) -> object:
    """A label in bytes or JSON (which FFCV ends with a zero)."""
    start, length = int(value["ptr"]), int(value["size"])
    if start + length > os.fstat(file.fileno()).st_size:
        raise DatasetError(f"{where}: damaged (a label has no bytes in the file); write or copy it again")
    data = pread(file.fileno(), min(length, 1 << 16), start).rstrip(b"\0")
    try:
        return json.loads(data)
    except ValueError:
        return data
