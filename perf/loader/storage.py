"""How fast storage delivers the bytes of the images: from the page cache, and from the device below it.

For the device, the pages of the images (and no others) are dropped from the page cache. `mincore` says whether they are
gone: some file systems ignore the request, and then there is no figure. On a virtual disk the figure may be too high,
since the host may cache the disk.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from pipeline.dataset.table import SampleTable

LEFT = 0.02  # share of the images' pages that may stay in the cache after dropping them
CHUNK = 16  # rows a task: tasks cost little, and no thread waits long for the last one
Extent = tuple[str, int, int]  # file, first byte, bytes


def read_ceilings(table: SampleTable, threads: int, seconds: float, rounds: int) -> dict[str, Any]:
    """{"read_warm", "read_cold"}: `threads` threads read whole images in random order, in `rounds` of about `seconds`.

    Each has the medians of "images_per_second" and "mb_per_second" (1e6 bytes), and "rounds". If a cold read cannot be
    measured its figures are None, with "why".
    """
    extents = extents_of(table)
    order = [extents[row] for row in np.random.default_rng(0).permutation(len(extents))]
    with ThreadPoolExecutor(threads) as pool:
        read_for(pool, order, 600.0, repeat=False)  # once all images, to fill the cache
        warm = [read_for(pool, order, seconds, repeat=True) for _ in range(rounds)]
        cold, why = [], None
        for _ in range(rounds):
            why = why or cannot_drop(extents)
            if why is None:
                cold.append(read_for(pool, order, seconds, repeat=False))
    return {
        "read_warm": rates(warm),
        "read_cold": {"images_per_second": None, "mb_per_second": None, "why": why} if why else rates(cold),
    }


def rates(rounds: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
    """Medians of (images, bytes, seconds), and each round's images a second."""
    images = [count / taken for count, _, taken in rounds]
    return {
        "images_per_second": round(median(images), 1),
        "mb_per_second": round(median(size / 1e6 / taken for _, size, taken in rounds), 1),
        "rounds": [round(rate, 1) for rate in images],
    }


def extents_of(table: SampleTable) -> list[Extent]:
    """The place of each row's bytes: file, first byte, number of bytes."""
    names = [str(table.root / name) for name in table.containers]
    rows = zip(table.container, table.offset, table.length, strict=True)
    return [(names[container], int(offset), int(length)) for container, offset, length in rows]


def read_for(
    pool: ThreadPoolExecutor, extents: Sequence[Extent], seconds: float, repeat: bool
) -> tuple[int, int, float]:
    """Read all extents once, or again and again (repeat), for at most about `seconds`.

    Returns the number of images and bytes read, and the seconds taken.
    """
    parts = [extents[first : first + CHUNK] for first in range(0, len(extents), CHUNK)]
    start = perf_counter()
    images, size = 0, 0
    while True:
        for count, read in pool.map(lambda part: read_part(part, start + seconds), parts):
            images, size = images + count, size + read
        taken = perf_counter() - start
        if not repeat or taken >= seconds:
            return images, size, taken


def read_part(extents: Sequence[Extent], end: float) -> tuple[int, int]:
    """Read extents until `end`, a time of perf_counter; returns images and bytes. Opens the file for each image."""
    images, size = 0, 0
    for path, offset, length in extents:
        if perf_counter() > end:
            break
        file = os.open(path, os.O_RDONLY)
        try:
            size += len(os.pread(file, length, offset))
        finally:
            os.close(file)
        images += 1
    return images, size


# ---------------------------------------------------------------------- the page cache
def cannot_drop(extents: Sequence[Extent]) -> str | None:
    """Drop these bytes from the page cache. Returns None, or the reason if that fails."""
    for flush in (False, True):  # pages written just now must first reach the disk
        for path, offset, length in extents:
            with whole_pages(path, offset, length) as (file, start, size):
                if flush:
                    os.fsync(file)
                os.posix_fadvise(file, start, size, os.POSIX_FADV_DONTNEED)
        try:
            share = cached_share(extents)
        except OSError as error:
            return f"mincore does not show the page cache ({error.strerror})"
        if share <= LEFT:
            return None
    problem = f"{share:.0%} of the pages stay in the page cache, or seem to"
    return f"{problem}: the file system ignores posix_fadvise(DONTNEED), or another user owns the files"


def cached_share(extents: Sequence[Extent]) -> float:
    """The share of the pages of these bytes that are in the page cache. Raises OSError."""
    cached, pages = 0, 0
    for path, offset, length in extents:
        with whole_pages(path, offset, length) as (file, start, size):
            in_cache = resident(file, start, size)
        cached, pages = cached + int(in_cache.sum()), pages + len(in_cache)
    return cached / max(1, pages)


@contextmanager
def whole_pages(path: str, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Open the file: its descriptor, and first byte and length of the pages that hold these bytes."""
    page = mmap.PAGESIZE
    start = offset // page * page
    file = os.open(path, os.O_RDONLY)
    try:
        yield file, start, -(-(offset + length - start) // page) * page
    finally:
        os.close(file)


def resident(file: int, start: int, size: int) -> np.ndarray:
    """(pages,) bool: which pages of an open file are in the page cache. Raises OSError."""
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, start)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        flags = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
        if libc.mincore(address, size, flags):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        libc.munmap(address, size)
    return (np.frombuffer(bytes(flags), np.uint8) & 1).astype(bool)


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
