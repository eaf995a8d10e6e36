"""Lists an LMDB database as byte ranges: walks its B+ tree, and reads only the pages of keys.

A value lies in one piece in the file: in the page of its key, or, if it is large, in pages of its own. So images are
read in place, without LMDB. What a value is: an encoded image; a Datum of Caffe; a pickled pair (bytes, label). No
pickle is executed: its bytes are searched for the image and a number.
Source: mdb.c of LMDB 0.9 (64 bits, little-endian), caffe.proto.
"""

from __future__ import annotations

import os
import pickletools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.dataset.finding.choice import NONE, Choice
from pipeline.dataset.finding.labels import Label, label_of
from pipeline.dataset.records.listing import ENCODED, Pixels, Records, Window, opened
from pipeline.dataset.records.pixels import GRAY
from pipeline.dataset.records.protobuf import BYTES, NUMBER, fields, signed
from pipeline.dataset.table import DatasetError

META = struct.Struct("<II8x8x")  # magic, version; address, size of the map
DATABASE = struct.Struct("<IHH4QQ")  # page size, flags, depth; branches, leaves, overflow pages, entries; root
PAGE = struct.Struct("<Q2xHHH")  # number, flags, lower, upper
NODE = struct.Struct("<HHHH")  # low, high; flags; bytes of the key
MAGIC, VERSION, NO_PAGE = 0xBEEFC0DE, 1, (1 << 64) - 1
BRANCH, LEAF = 1, 2  # flags of a page
LARGE, SUB_DATABASE, DUPLICATES = 1, 2, 4  # flags of a node
PAGE_SIZES = tuple(1 << bits for bits in range(8, 17))  # in bytes
LARGEST_PICKLE = 1 << 26
COUNTED_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8}  # bytes of their length
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")


class Found(NamedTuple):
    """An image in a value: its byte range, label and pixels."""

    start: int
    length: int
    label: Label
    pixels: Pixels = ENCODED


def list_lmdb(path: str, choice: Choice) -> Records:
    """The images of a database (data.mdb, or a single file). Raises DatasetError if it is damaged.

    If no value has a label and every key has a folder, that is the class.
    """
    name = os.path.basename(os.path.dirname(path)) if os.path.basename(path) == "data.mdb" else os.path.basename(path)
    records = Records()
    with opened(path) as descriptor:
        window = Window(descriptor)
        for key, start, length in _values(window, name):
            found = _image(window, start, length, name)
            if found is None:
                records.left_out["value without an image"] += 1
            else:
                label = None if choice.label == NONE else found.label
                records.add(found.start, found.length, key.decode("utf-8", "replace"), label, found.pixels)
    if choice.label != NONE and all(label is None and "/" in key for key, label in zip(records.keys, records.labels)):  # noqa: B905
        records.labels = [key.partition("/")[0] for key in records.keys]
    return records


# ---------------------------------------------------------------------------------------------- the tree


def _values(window: Window, name: str) -> Iterator[tuple[bytes, int, int]]:
    """Key, offset and length of each value, by key."""
    page_size, root = _newest(window, name)
    if root != NO_PAGE:
        yield from _below(window, root, page_size, set(), name)


def _newest(window: Window, name: str) -> tuple[int, int]:
    """Page size and root of the main tree, by the newer one of the two first pages."""
    best = (-1, 0, 0)
    at = 0
    for _ in range(2):
        head = window.read(at + 16, META.size + 2 * DATABASE.size + 16)
        if len(head) < META.size + 2 * DATABASE.size + 16 or META.unpack_from(head) != (MAGIC, VERSION):
            raise DatasetError(f"{name}: no LMDB of version {VERSION} (64 bits), or damaged; copy it again")
        free, main = (DATABASE.unpack_from(head, META.size + index * DATABASE.size) for index in range(2))
        (transaction,) = struct.unpack_from("<8xQ", head, META.size + 2 * DATABASE.size)
        best = max(best, (transaction, free[0], main[-1]))
        at = free[0]
        if at not in PAGE_SIZES:
            raise DatasetError(f"{name}: damaged at its beginning; copy it again")
    return best[1:]


def _below(window: Window, page: int, page_size: int, seen: set[int], name: str) -> Iterator[tuple[bytes, int, int]]:
    """seen: pages so far; a page of a sound tree is reached once."""
    damaged = DatasetError(f"{name}: cut short or damaged at page {page}; copy it again")
    if (page + 1) * page_size > window.size or page in seen:
        raise damaged
    seen.add(page)
    data = os.pread(window.descriptor, page_size, page * page_size)
    number, flags, lower, _ = PAGE.unpack_from(data)
    if number != page or not flags & (BRANCH | LEAF) or not 16 <= lower <= page_size:
        raise damaged
    for place in struct.unpack_from(f"<{(lower - 16) // 2}H", data, 16):
        if place + NODE.size > page_size:
            raise damaged
        low, high, kind, key_bytes = NODE.unpack_from(data, place)
        if flags & BRANCH:
            yield from _below(window, low | high << 16 | kind << 32, page_size, seen, name)
            continue
        begin, length = place + 8 + key_bytes, low | high << 16
        if begin + (8 if kind & LARGE else 0) > page_size:
            raise damaged
        key = data[place + 8 : begin]
        if kind & LARGE:
            (first,) = struct.unpack_from("<Q", data, begin)
            start = first * page_size + 16
        elif kind & (SUB_DATABASE | DUPLICATES):
            if kind & DUPLICATES or length != DATABASE.size or begin + length > page_size:
                raise DatasetError(f"{name}: has several values for one key, which is not read; write one for each")
            root = DATABASE.unpack_from(data, begin)[-1]
            if root != NO_PAGE:
                yield from _below(window, root, page_size, seen, name)
            continue
        else:
            start = page * page_size + begin
        if start + length > window.size:
            raise damaged
        yield key, start, length


# ---------------------------------------------------------------------------------------------- values


def _image(window: Window, start: int, length: int, name: str) -> Found | None:
    """The image in a value, None without."""
    if not length:
        return None
    if window.shows_image(start, length):
        return Found(start, length, None)
    if window.read(start, 1) == b"\x80":
        return _pickled(window, start, length, name)
    try:
        return _datum(window, start, start + length)
    except ValueError:
        return None


def _datum(window: Window, start: int, end: int) -> Found | None:
    """Caffe's message: channels 1, height 2, width 3, data 4, label 5, encoded 7. Raises ValueError."""
    numbers: dict[int, int] = {}
    data = None
    for field in fields(window, start, end):
        if field.number not in range(1, 8) or field.wire != (BYTES if field.number == 4 else NUMBER):
            return None
        if field.number == 4:
            data = field
        else:
            numbers[field.number] = signed(field.value)
    if data is None:
        return None
    label = numbers.get(5)
    label = None if label is None or label < 0 else label
    size = data.end - data.start
    channels, height, width = (numbers.get(index, 0) for index in (1, 2, 3))
    if window.shows_image(data.start, size):
        return Found(data.start, size, label)
    if channels in (1, 3) and channels * height * width == size:
        return Found(data.start, size, label, Pixels(height, width, GRAY if channels == 1 else "BGR planes"))
    return None


def _pickled(window: Window, start: int, length: int, name: str) -> Found | None:
    """A pickled (bytes, label), as PyTorch users write it: the first bytes that are an image, then the first number."""
    if length > LARGEST_PICKLE:
        return None
    found: tuple[int, int] | None = None
    try:
        for code, value, at in pickletools.genops(os.pread(window.descriptor, length, start)):
            if found is None and code.name in COUNTED_BYTES and isinstance(value, bytes):
                begin = start + (at or 0) + 1 + COUNTED_BYTES[code.name]
                found = (begin, len(value)) if window.shows_image(begin, len(value)) else None
            elif found is not None and code.name in NUMBERS:
                return Found(*found, label_of(value, name))
    except DatasetError:
        raise
    except Exception:  # a damaged pickle can raise any error
        return None
    return None if found is None else Found(*found, None)
