"""Writing FFCV's .beton, format version 2, so that the stock `ffcv` package reads it.

    header | two field descriptors | (mode, size, pointer, label) per sample | pages of blobs | allocation table

Everything is little-endian. A blob lies within one page, because FFCV's process cache reads page by page; the page
size is a power of two that the header names. Nobody knows the largest blob before all are made, so a part keeps each
blob within a *cell*, the least power of two from 8 MiB up that holds it: any larger page then holds it too, as long
as the part starts at a multiple of its own largest cell.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.beton import ALLOCATION, FIELD, HEADER, IMAGE, INT, INTEGER, RGB, VERSION

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


def cell(size: int) -> int:
    """The least page, in bytes, that holds a blob of `size` bytes."""
    return max(PAGE, 1 << (size - 1).bit_length())


def place(position: int, size: int) -> int:
    """Where a blob goes in a part that is filled up to `position`: there, or at the start of a fresh cell."""
    room = cell(size)
    return position if position % room + size <= room else round_up(position, room)


def round_up(position: int, multiple: int) -> int:
    return -(-position // multiple) * multiple


def layout(samples: int, parts: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Where each part starts in the file and where the allocation table does; `parts`: (bytes, largest cell) of each.

    A part starts on a page of its own; what lies between is zero.
    """
    position = HEADER.itemsize + 2 * FIELD.itemsize + samples * SAMPLE.itemsize
    starts = []
    for size, largest in parts:
        starts.append(round_up(position, largest))
        position = starts[-1] + size
    return starts, round_up(position, PAGE)


def head(samples: Samples, page_size: int, allocations: int) -> bytes:
    """Header, fields `image` and `label`, and the row of each sample. `allocations`: where that table starts."""
    header = np.array([(VERSION, 2, page_size, len(samples.size), allocations)], HEADER)
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
    parts: Sequence[tuple[Path, int, int]],
    page_size: int,
    allocations: int,
    advance: Callable[[int], object],
) -> str:
    """Write the .beton at `path` from its parts (file, bytes, start in the .beton) and give its SHA-256.

    A part's file is removed as soon as its bytes are in `path` and synced, so the disk holds everything once and not
    twice. Called again after a kill, what is in `path` already (its part's file is gone) is only read. `advance` is
    told of bytes done.
    """
    digest = hashlib.sha256()
    with open(path, "r+b" if path.exists() else "w+b") as file:

        def write(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        write(head(samples, page_size, allocations))
        for source, size, start in parts:
            write_zeros(start - file.tell(), write)
            if source.exists():
                with open(source, "rb") as part:
                    while data := part.read(COPY):
                        write(data)
                        advance(len(data))
                file.flush()
                os.fsync(file.fileno())
                source.unlink()
            else:
                for at in range(0, size, COPY):
                    data = file.read(min(COPY, size - at))
                    digest.update(data)
                    advance(len(data))
            if file.tell() != start + size:
                raise OSError(f"{source}: has not the {size} bytes that it had; another program changes the folder")
        write_zeros(allocations - file.tell(), write)
        write(allocation_table(samples))
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_zeros(count: int, write: Callable[[bytes], object]) -> None:
    for at in range(0, count, COPY):
        write(bytes(min(COPY, count - at)))
