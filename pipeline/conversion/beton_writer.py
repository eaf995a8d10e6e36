"""Writing FFCV's .beton, format version 2, so that the stock `ffcv` package reads it.

    header | two field descriptors | (mode, size, pointer, label) per sample | pages of blobs | allocation table

Images with their own channels are an array field: one type and shape for all, so a sample is (pointer, label).
Everything is little-endian. A blob is within one page, because FFCV's process cache reads page by page. The page size
in the header is the smallest power of two, from 8 MiB up, that holds the largest blob. It is known only when all parts
are made, so a part is a sequence of blobs without gaps; joining inserts a gap where a blob would cross a page's end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import sync_file
from pipeline.dataset.beton import ALLOCATION, ARRAY, FIELD, HEADER, IMAGE, INT, INTEGER, RGB, VERSION
from pipeline.dataset.channels.array_field import arguments_of
from pipeline.dataset.channels.format import PixelFormat

PAGE = 1 << 23  # bytes, FFCV's default
LONGEST_SIDE = 65_535  # pixels: width and height are 16-bit numbers
COPY = 1 << 23  # bytes read at once while parts are joined

SAMPLE = np.dtype([("image", IMAGE), ("label", INTEGER)], align=True)
ARRAY_SAMPLE = np.dtype([("image", "<u8"), ("label", INTEGER)], align=True)


class Samples(NamedTuple):
    """The records of N images in a .beton, (N,) each; `pointer` and `size` are the byte range of the blob."""

    raw: NDArray[np.bool_]  # True for RGB pixels (height x width x 3), False for a JPEG
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    label: NDArray[np.int32]
    pointer: NDArray[np.int64]
    size: NDArray[np.int64]


def page_size(largest: int) -> int:
    """Page size in bytes for blobs of at most `largest` bytes."""
    return max(PAGE, 1 << (largest - 1).bit_length())


def layout(sizes: NDArray[np.int64], page: int, sample: np.dtype = SAMPLE) -> tuple[NDArray[np.int64], int]:
    """Start of each blob in the file, (n,) int64, and of the allocation table. sizes: (n,) bytes of the blobs; sample:
    the record of each.

    The first blob starts a new page; a blob that would cross the end of a page starts the next one.
    """
    position = round_up(HEADER.itemsize + 2 * FIELD.itemsize + len(sizes) * sample.itemsize, page)
    before = np.concatenate([[0], np.cumsum(sizes)])  # bytes of all blobs before each
    starts = np.zeros(len(sizes), np.int64)
    first = 0
    while first < len(sizes):
        end = int(np.searchsorted(before, before[first] + page, side="right")) - 1  # blobs of this page
        starts[first:end] = position + before[first:end] - before[first]
        last = position + int(before[end] - before[first])
        first, position = end, position + page
    return starts, round_up(last if len(sizes) else position, PAGE)


def pieces(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(start, bytes) of the contiguous pieces that these blobs form."""
    if not len(sizes):
        return []
    breaks = np.flatnonzero(starts[1:] != starts[:-1] + sizes[:-1]) + 1
    first, end = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(sizes)]]) - 1
    return list(zip(starts[first].tolist(), (starts[end] + sizes[end] - starts[first]).tolist(), strict=True))


def round_up(position: int, multiple: int) -> int:
    return -(-position // multiple) * multiple


def head(samples: Samples, page: int, allocations: int, pixels: PixelFormat) -> bytes:
    """Header, fields `image` and `label`, and the record of each sample. allocations: start of the allocation table;
    pixels: of all images, which have one size if they are native."""
    header = np.array([(VERSION, 2, page, len(samples.size), allocations)], HEADER)
    fields = np.zeros(2, FIELD)
    fields["type_id"] = ARRAY if pixels.native else RGB, INT
    for field, name in zip(fields, (b"image", b"label"), strict=True):
        field["name"][: len(name)] = list(name)
    rows = np.zeros(len(samples.size), ARRAY_SAMPLE if pixels.native else SAMPLE)
    rows["label"] = samples.label
    if pixels.native:
        shape = int(samples.height[0]), int(samples.width[0]), pixels.channels
        fields["arguments"][0] = np.frombuffer(arguments_of(np.dtype(pixels.stored), shape), np.uint8)
        rows["image"] = samples.pointer
    else:
        rows["image"]["mode"], rows["image"]["data_ptr"] = samples.raw, samples.pointer
        rows["image"]["width"], rows["image"]["height"] = samples.width, samples.height
    return header.tobytes() + fields.tobytes() + rows.tobytes()


def allocation_table(samples: Samples) -> bytes:
    """The allocation table at the end of the file: (sample, pointer, size) of each blob."""
    table = np.zeros(len(samples.size), ALLOCATION)
    table["sample_id"], table["ptr"], table["size"] = np.arange(len(table)), samples.pointer, samples.size
    return table.tobytes()


def join(
    path: Path,
    samples: Samples,
    parts: Sequence[tuple[Path, list[tuple[int, int]]]],
    page: int,
    allocations: int,
    advance: Callable[[int], object],
    pixels: PixelFormat,
) -> str:
    """Write the .beton at `path` and return its SHA-256. parts: each part's file and (start, bytes) of its pieces.

    A part's file is removed as soon as its bytes in `path` are synced, so that the disk holds everything once, not
    twice. After a kill, a second call only reads the parts that `path` already holds (their files are gone). advance:
    called with the number of bytes done. pixels: as for `head`.
    """
    digest = hashlib.sha256()
    with open(path, "r+b" if path.exists() else "w+b") as file:

        def write(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        write(head(samples, page, allocations, pixels))
        for source, places in parts:
            with open(source, "rb") if source.exists() else nullcontext() as part:
                for start, size in places:
                    write_zeros(start - file.tell(), write)
                    for at in range(0, size, COPY):
                        data = (part or file).read(min(COPY, size - at))
                        if part:
                            file.write(data)
                        digest.update(data)
                        advance(len(data))
                    if file.tell() != start + size:
                        raise OSError(f"{source}: has changed; another program writes to the folder")
            if part:
                sync_file(file)
                source.unlink()
        write_zeros(allocations - file.tell(), write)
        write(allocation_table(samples))
        file.truncate()
        sync_file(file)
    return digest.hexdigest()


def write_zeros(count: int, write: Callable[[bytes], object]) -> None:
    for at in range(0, count, COPY):
        write(bytes(min(COPY, count - at)))
