"""Images that are several files, one for each band: which files belong together, and their bytes in one piece.

`data.bands=B02,B03,B08` names the bands by words of the files' names: `a_B02_10m.tif`, `a_B03_10m.tif`, `a_B08_10m.tif`
are the image `a_*_10m.tif`. The bytes of its files are put behind one another, with a head that says so; from there on
they are read like those of any file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from pipeline.dataset.images import BadImage

WORD = "(?<![a-z0-9])({})(?![a-z0-9])"  # ignoring case
MAGIC = b"\x93BANDS\0\0"  # then the number of files and the bytes of each, in little-endian 8 bytes


def samples_of(names: Sequence[str], bands: Sequence[str]) -> tuple[Int64[np.ndarray, "n bands"], list[str]]:
    """The files of each image by their places in `names`, in the order of `bands`, and its name with `*` for the band.

    Images are in the order of their first bands' files; one that lacks a band is none. The last word of a file's name
    that is a band decides. Where no image is complete, the names of folders have that word too (`red/red_1.tif`).
    Letters may be small or capital.
    """
    words = re.compile(WORD.format("|".join(map(re.escape, bands))), re.IGNORECASE)
    place = {band.lower(): index for index, band in enumerate(bands)}
    whole: dict[str, dict[int, int]] = {}
    for folders in (False, True):
        found: dict[str, dict[int, int]] = {}
        for index, name in enumerate(names):
            folder, slash, last = name.rpartition("/")
            matches = [*words.finditer(last)]
            band = matches[-1][1] if matches else ""
            if matches:
                last = f"{last[: matches[-1].start()]}*{last[matches[-1].end() :]}"
            elif folders and (above := words.findall(folder)):
                band = above[-1]
            if band and folders:
                folder = re.sub(WORD.format(re.escape(band)), "*", folder, flags=re.IGNORECASE)
            if band:
                found.setdefault(folder + slash + last, {})[place[band.lower()]] = index
        whole = {key: files for key, files in found.items() if len(files) == len(bands)}
        if whole:
            break
    rows = sorted((files[0], key) for key, files in whole.items())
    order = [[whole[key][band] for band in range(len(bands))] for _, key in rows]
    return np.array(order, np.int64).reshape(-1, len(bands)), [key for _, key in rows]


def packed(files: Sequence[bytes]) -> bytes:
    """The bytes of the files of an image in one piece."""
    return b"".join([MAGIC, np.array([len(files), *map(len, files)], "<u8").tobytes(), *files])


def is_packed(data: bytes) -> bool:
    return data[: len(MAGIC)] == MAGIC


def unpacked(data: bytes) -> list[bytes]:
    """The files that `packed` has put together. Raises BadImage."""
    head = len(MAGIC) + 8
    count = int.from_bytes(data[len(MAGIC) : head], "little")
    start = head + 8 * count
    if count > len(data) or start > len(data):
        raise BadImage("truncated")
    ends = start + np.cumsum(np.frombuffer(data, "<u8", count, head).astype(np.int64))
    if not count or ends[-1] != len(data) or (np.diff(ends, prepend=start) < 0).any():
        raise BadImage("truncated")
    files = [data[first:end] for first, end in zip([start, *ends[:-1].tolist()], ends.tolist(), strict=True)]
    if any(map(is_packed, files)):
        raise BadImage("unreadable")
    return files


def stacked(arrays: Sequence[NDArray]) -> NDArray:
    """The images of all bands, (H, W, C) each, as one. A band whose sides are the whole part of the largest one's is
    repeated, so that no value changes. Raises BadImage for bands of other sizes or types."""
    height, width = (max(array.shape[axis] for array in arrays) for axis in (0, 1))
    if len({array.dtype for array in arrays}) > 1:
        raise BadImage("bands of different types")
    planes = []
    for array in arrays:
        rows, columns = height // array.shape[0], width // array.shape[1]
        if (rows * array.shape[0], columns * array.shape[1]) != (height, width) or rows != columns:
            raise BadImage("bands of different sizes")
        planes.append(array if rows == 1 else array.repeat(rows, axis=0).repeat(columns, axis=1))
    return np.concatenate(planes, axis=2)
