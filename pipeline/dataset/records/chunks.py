"""Lists the items of an MDS shard or a LitData chunk as byte ranges; both have the same layout.

number of items n (uint32); n + 1 offsets in the file (uint32); in MDS a JSON; items. An item is the sizes (uint32) of
those of its columns whose size is not fixed, then the columns. All is little-endian.
Source: the writers of mosaicml-streaming 0.13 and litdata 0.2.76.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.dataset.finding.choice import LABELS, Choice, chosen_image, chosen_label
from pipeline.dataset.finding.labels import Label, label_of
from pipeline.dataset.records.listing import ENCODED, Pixels, Records, Window
from pipeline.dataset.records.pixels import of_shape
from pipeline.dataset.table import DatasetError

IMAGE, BYTES, PIL, ARRAY, LIST, PIL_LIST, TENSOR, NUMPY, TEXT = (
    "image", "bytes", "pil", "array", "list", "pil list", "tensor", "numpy", "text",
)  # fmt: skip
UINT8 = {TENSOR: 11, NUMPY: 4}  # LitData's number of the type
LOOKED_AT = 8  # items that say which columns hold images
LONGEST = 1 << 16  # bytes of a label
Ranges = list[tuple[int, int, Pixels]]  # offset, length and pixels of each image


class Column(NamedTuple):
    """kind: one of the above, a NumPy dtype of a single value, or '' for anything else; size: in bytes, if it is fixed;
    called: the library's name of its encoding."""

    name: str
    kind: str
    size: int | None
    called: str


class Item(NamedTuple):
    """An item of a chunk: its number, and offset and length of each column."""

    number: int
    columns: list[tuple[int, int]]


def list_items(window: Window, name: str, columns: Sequence[Column], choice: Choice, pair: bool = False) -> Records:
    """The images of a chunk. pair: whether the only other value is the label, whatever it is called.

    Raises DatasetError if the chunk is damaged, or if it is not clear which columns are the image and the label.
    """
    records = Records()
    image, label = _chosen(window, name, columns, choice, pair)
    for item in _items(window, name, columns):
        ranges = _images(window, columns[image], *item.columns[image]) if image >= 0 else []
        if not ranges:
            records.left_out["record without an image"] += 1
            continue
        value = None if label < 0 else _label(window, columns[label], *item.columns[label], name)
        for view, (start, length, pixels) in enumerate(ranges):
            key = f"{name.partition('.')[0]}-{_part(name)}{item.number:06d}"
            records.add(start, length, f"{key}-{view}" if len(ranges) > 1 else key, value, pixels)
    return records


def _part(name: str) -> str:
    """'00001-' of 'shard.00001.mds'."""
    part = name.partition(".")[2].partition(".")[0]
    return f"{part}-" if part.isdigit() else ""


def offsets_of(window: Window, name: str) -> list[int]:
    """Where the items begin, and where the last one ends. Raises DatasetError."""
    (count,) = struct.unpack("<I", window.read(0, 4).ljust(4, b"\0"))
    table = window.read(4, 4 * count + 4) if 8 + 4 * count <= window.size else b""
    offsets = np.frombuffer(table, "<u4").astype(np.int64)
    if not len(offsets) or offsets[0] < 8 + 4 * count or (np.diff(offsets) < 0).any() or offsets[-1] > window.size:
        raise DatasetError(f"{name}: cut short or damaged ({window.size} bytes); copy it again")
    return offsets.tolist()


def _items(window: Window, name: str, columns: Sequence[Column]) -> Iterator[Item]:
    variable = [index for index, column in enumerate(columns) if column.size is None]
    offsets = offsets_of(window, name)
    for number, (start, end) in enumerate(pairwise(offsets)):
        sizes = [column.size or 0 for column in columns]
        head = window.read(start, 4 * len(variable))
        if len(head) == 4 * len(variable):
            for index, size in zip(variable, struct.unpack(f"<{len(variable)}I", head), strict=True):
                sizes[index] = size
        if min(sizes, default=0) < 0 or start + 4 * len(variable) + sum(sizes) != end:
            raise DatasetError(f"{name}: damaged in item {number}; copy it again")
        begin, places = start + 4 * len(variable), []
        for size in sizes:
            places.append((begin, size))
            begin += size
        yield Item(number, places)


def _chosen(window: Window, name: str, columns: Sequence[Column], choice: Choice, pair: bool) -> tuple[int, int]:
    """The positions of the columns of images and labels; -1 without."""
    names = [column.name for column in columns]
    found: set[int] = set()
    empty = True
    for item in _items(window, name, columns):
        empty = False
        found.update(
            index for index, column in enumerate(columns) if _images(window, column, *item.columns[index])
        )  # fmt: skip
        if item.number + 1 == LOOKED_AT:
            break
    if empty:
        return -1, -1
    if not found:
        held = ", ".join(f"{column.name or 'value'}: {column.called}" for column in columns)
        raise DatasetError(f"{name}: no column holds images ({held}); give a dataset with one")
    image = names.index(chosen_image(sorted(names[index] for index in found), choice))
    others = {column.name: column.called for index, column in enumerate(columns) if index not in found}
    able = [column.name for column in columns if column.name in others and _can_label(column)]
    label = column_of_labels(name, others, able, choice, able if pair and len(able) == 1 else ())
    return image, names.index(label) if label else -1


def column_of_labels(
    name: str, others: Mapping[str, str], able: Sequence[str], choice: Choice, named: Sequence[str] = ()
) -> str:
    """The column of labels, '' without. others: what the columns without images hold; able: those that can be labels;
    named: see `chosen_label`. Raises DatasetError where it is unclear, or where labels are no classes."""
    label = chosen_label(able, choice, named)
    unable = [column for column in others if column.lower() in LABELS and column not in able]
    if unable and not label and choice.label is None:
        problem = f"{name}: the column {unable[0]} holds {others[unable[0]]}, which is no class"
        raise DatasetError(f"{problem}; choose another with data.label, or data.label=none")
    return label


def _can_label(column: Column) -> bool:
    return column.kind == TEXT or column.kind[:1] in ("<", "|")


def _label(window: Window, column: Column, start: int, length: int, name: str) -> Label:
    data = window.read(start, min(length, LONGEST))
    if column.kind == TEXT:
        return label_of(data, name)
    if length != np.dtype(column.kind).itemsize:
        raise DatasetError(f"{name}: damaged (a label of {length} bytes); copy it again")
    return label_of(np.frombuffer(data, column.kind)[0].item(), name)


# ---------------------------------------------------------------------------------------------- values


def _images(window: Window, column: Column, start: int, length: int) -> Ranges:
    """The images of a value; [] if it is none."""
    reader = READERS.get(column.kind)
    return reader(window, start, length) if reader and length else []


def _sniffed(window: Window, start: int, length: int) -> Ranges:
    return [(start, length, ENCODED)] if window.shows_image(start, length) else []


def _pil(window: Window, start: int, length: int) -> Ranges:
    """Width, height and length of the mode (uint32), the mode in Pillow's words, the pixels."""
    head = window.read(start, min(length, 28))
    if length < 13:
        return []
    width, height, letters = struct.unpack("<3I", head[:12])
    mode = head[12 : 12 + letters].decode("ascii", "replace")
    body = length - 12 - letters
    if not mode.isprintable() or letters > 16 or (mode == "RGB" and body != 3 * width * height):
        return []
    return [(start + 12 + letters, body, Pixels(height, width, mode))]


def _several(inner: Callable[[Window, int, int], Ranges], begin: int) -> Callable[[Window, int, int], Ranges]:
    """A reader of lists: their length (uint32, at `begin`), the sizes of the parts (uint32), the parts."""

    def read(window: Window, start: int, length: int) -> Ranges:
        (count,) = struct.unpack("<I", window.read(start + begin, 4).ljust(4, b"\0"))
        at = begin + 4 + 4 * count
        if at > length:
            return []
        ranges: Ranges = []
        for size in struct.unpack(f"<{count}I", window.read(start + begin + 4, 4 * count)):
            if at + size > length:
                return []
            ranges += inner(window, start + at, size)
            at += size
        return ranges

    return read


def _array(kind: str) -> Callable[[Window, int, int], Ranges]:
    """A reader of LitData's arrays: number of the type, rank, shape (uint32 each), values."""

    def read(window: Window, start: int, length: int) -> Ranges:
        head = window.read(start, min(length, 20))
        for order in ("<", ">"):  # tensors are written in the order of networks, by older versions not
            numbers = struct.unpack(f"{order}{len(head) // 4}I", head[: len(head) // 4 * 4])
            if len(numbers) < 4 or numbers[0] != UINT8[kind] or not 2 <= numbers[1] <= len(numbers) - 2:
                continue
            rank, begin = numbers[1], 8 + 4 * numbers[1]
            pixels = of_shape(numbers[2 : 2 + rank], planes_first=kind == TENSOR)
            if pixels and math.prod(numbers[2 : 2 + rank]) == length - begin:
                return [(start + begin, length - begin, pixels)]
        return []

    return read


def _encoded(window: Window, start: int, length: int) -> Ranges:
    return [(start, length, ENCODED)]


READERS: dict[str, Callable[[Window, int, int], Ranges]] = {
    IMAGE: _encoded, BYTES: _sniffed, PIL: _pil, ARRAY: _several(_encoded, 0), LIST: _several(_encoded, 4),
    PIL_LIST: _several(_pil, 4), TENSOR: _array(TENSOR), NUMPY: _array(NUMPY),
}  # fmt: skip
