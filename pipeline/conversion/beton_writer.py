"""Writing FFCV's .beton, format version 2, so that the stock `ffcv` package reads it.

    header | two field descriptors | (mode, size, pointer, label) per sample | pages of blobs | allocation table

Everything is little-endian. A blob lies within one page, because FFCV's process cache reads page by page; the page
size is a power of two that the header names: the least from 8 MiB up that holds the largest blob. Nobody knows that
before all parts are made: a part is blobs without gaps, and joining leaves one where a blob would cross a page's end.
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
from pipeline.dataset.beton import ALLOCATION, FIELD, HEADER, IMAGE, INT, INTEGER, RGB, VERSION

PAGE = 1 << 23  # FFCV's own default
LONGEST_SIDE = 65_535  # pixels: width and height are 16-bit numbers
COPY = 1 << 23  # bytes read at once while parts are joined

SAMPLE = np.dtype([("image", IMAGE), ("label", INTEGER)], align=True)


class Samples(NamedTuple):
    """What a .beton says of its N images: (N,) each; `pointer` and `size` are the byte range of the blob."""

    raw: NDArray[np.bool_]  # RGB pixels (height x width x 3), else a JPEG
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    label: NDArray[np.int32]
    pointer: NDArray[np.int64]
    size: NDArray[np.int64]


def page_size(largest: int) -> int:
    """Bytes of a page for blobs of at most `largest` bytes."""
    return max(PAGE, 1 << (largest - 1).bit_length())


def layout(sizes: NDArray[np.int64], page: int) -> tuple[NDArray[np.int64], int]:
    """Where each blob begins in the file, and where the allocation table does. `sizes`: (n,) bytes of the blobs.

    Blobs follow each other from a page of their own on; one that would cross a page's end begins the next one.
    """
    position = round_up(HEADER.itemsize + 2 * FIELD.itemsize + len(sizes) * SAMPLE.itemsize, page)
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
    """(start, bytes) of the stretches without a gap that these blobs make up."""
    if not len(sizes):
        return []
    breaks = np.flatnonzero(starts[1:] != starts[:-1] + sizes[:-1]) + 1
    first, end = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(sizes)]]) - 1
    return list(zip(starts[first].tolist(), (starts[end] + sizes[end] - starts[first]).tolist(), strict=True))


def round_up(position: int, multiple: int) -> int:
    return -(-position // multiple) * multiple


def head(samples: Samples, page: int, allocations: int) -> bytes:
    """Header, fields `image` and `label`, and the row of each sample. `allocations`: where that table starts."""
    header = np.array([(VERSION, 2, page, len(samples.size), allocations)], HEADER)
    fields = np.zeros(2, FIELD)
    fields["type_id"] = RGB, INT
    for field, name in zip(fields, (b"image", b"label"), strict=True):
        field["name"][: len(name)] = list(name)
    rows = np.zeros(len(samples.size), SAMPLE)
    rows["image"]["mode"], rows["image"]["data_ptr"], rows["label"] = samples.raw, samples.pointer, samples.label
    rows["image"]["width"], rows["image"]["height"] = samples.width, samples.height
    return header.tobytes() + fields.tobytes() + rows.tobytes()


def allocation_table(samples: Samples) -> bytes:
    """The end of the file: (sample, pointer, size) of each blob."""
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
) -> str:
    """Write the .beton at `path` from its parts (file, and where its pieces go: start and bytes) and give its SHA-256.

    A part's file is removed as soon as its bytes are in `path` and synced, so the disk holds everything once and not
    twice. Called again after a kill, what is in `path` already (its part's file is gone) is only read. `advance` is
    told of bytes done.
    """
    digest = hashlib.sha256()
    with open(path, "r+b" if path.exists() else "w+b") as file:

        def write(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        write(head(samples, page, allocations))
        for source, where in parts:
            with open(source, "rb") if source.exists() else nullcontext() as part:
                for start, size in where:
                    write_zeros(start - file.tell(), write)
                    for at in range(0, size, COPY):
                        data = (part or file).read(min(COPY, size - at))
                        if part:
                            file.write(data)
                        digest.update(data)
                        advance(len(data))
                    if file.tell() != start + size:
                        raise OSError(f"{source}: has not the bytes that it had; another program changes the folder")
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
