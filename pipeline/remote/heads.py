"""A scan of headers over the network: fetches the index of a shard, what lies between its images, and their heads.

The shard is a file with holes, and the scan of a shard on the disk reads it: what that reads is fetched first
(`common.holes`). Ranges that lie near each other, or are read in turn, are fetched together.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_at
from common.holes import filled
from pipeline.dataset.headers import FIRST
from pipeline.dataset.table import HEADERS, DatasetError
from pipeline.remote.address import RemoteObject
from pipeline.remote.faults import Missing
from pipeline.remote.index import ImageProbe
from pipeline.remote.probes import ShardProbes
from pipeline.remote.ranges import LARGEST
from pipeline.remote.skeletons import image_ranges, images_apart, probes_of
from pipeline.remote.store import Store, read_range

PAGE = 1 << 10
AHEAD = 8 * PAGE  # bytes that are fetched at least where a scan reads on: a member's head in a tar, and the image's
NEAR = 16 * PAGE  # bytes that cost less than another request: 0.2 ms at 100 MB/s
SHARDS = 16  # at the same time: in a tar or TFRecord only each header says where the next one is
THREADS = 32  # requests for heads at the same time


class Partial:
    """An object as a file of its size at `path`, of which only what was asked for is there. Threads that ask at the
    same time may fetch some bytes twice."""

    def __init__(self, store: Store, item: RemoteObject, path: Path) -> None:
        self.item, self.path, self._store = item, path, store
        self._held = np.zeros(-(-item.size // PAGE), bool)  # by page
        self._end, self._ahead = 0, AHEAD  # of the last call of `fill`
        with path.open("wb") as file:
            os.truncate(file.fileno(), item.size)

    def fill(self, at: int, length: int) -> None:
        """Have `length` bytes from `at` on; fetch more if they are read in turn. Raises DatasetError."""
        start, end = self._missing(at, at + length)
        if start == end:
            return
        in_turn = self._end > 0 and 0 <= start - self._end <= NEAR
        self._ahead = min(2 * self._ahead, LARGEST) if in_turn else AHEAD
        start = self._end if in_turn else start
        self._end = min(max(end, start + self._ahead), self.item.size)
        try:
            self.fetch(start, self._end)
        except Missing as error:
            raise DatasetError(str(error)) from None

    def fetch(self, start: int, end: int) -> None:
        """Have the bytes `start` to before `end`. Raises Missing, DatasetError."""
        start, end = self._missing(start, end)
        with open(self.path, "r+b", buffering=0) as file:
            for at in range(start, end, LARGEST):
                write_at(file.fileno(), read_range(self._store, self.item, at, min(at + LARGEST, end)), at)
        self._held[start // PAGE : -(-end // PAGE)] = True

    def empty(self) -> None:
        """The object is gone: an empty file is there."""
        self._held[:] = True
        os.truncate(self.path, 0)

    def _missing(self, start: int, end: int) -> tuple[int, int]:
        """The range from the first to the last missing page; (0, 0) if all bytes are there."""
        first = start // PAGE
        missing = first + np.flatnonzero(~self._held[first : -(-end // PAGE)])
        if not len(missing):
            return 0, 0
        return int(missing[0]) * PAGE, min((int(missing[-1]) + 1) * PAGE, self.item.size)


def shard_heads(
    store: Store,
    items: Sequence[RemoteObject],
    folder: Path,
    files: Path,
    done: Callable[[RemoteObject, Path, ShardProbes], Any],
) -> None:
    """Scan the headers of shards. folder: of the files with holes, and of these only; files: the mirror's folder of
    objects; done: called for each shard, with its file. Raises DatasetError, which names the shard."""
    flying: deque[tuple[Partial, Future[None]]] = deque()

    def finish() -> None:
        partial, future = flying.popleft()
        beside = (files / partial.item.name).parent
        try:
            future.result()
            with filled(partial.path, partial.fill):
                probes = probes_of(partial.path, partial.item.name, beside, 1, HEADERS)
        except DatasetError as error:
            raise DatasetError(f"{partial.item.name}: {str(error).partition(': ')[2] or error}") from None
        done(partial.item, partial.path, probes)

    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(SHARDS) as shards:
        try:
            for number, item in enumerate(items):
                partial = Partial(store, item, folder / f"{os.getpid()}-{number}")
                flying.append((partial, shards.submit(_fetch_heads, partial, files, pool)))
                if len(flying) >= 2 * SHARDS:
                    finish()
            while flying:
                finish()
        except BaseException:
            for _, future in flying:
                future.cancel()
            raise


def _fetch_heads(partial: Partial, files: Path, pool: Executor) -> None:
    """Fetch all of a shard but the images, and the head of each."""
    with filled(partial.path, partial.fill):
        images = image_ranges(partial.path, partial.item.name, (files / partial.item.name).parent)
    ranges, at = [(0, 0)], 0
    for offset, length in [*sorted(images), (partial.item.size, 0)]:
        start, end = min(at, offset), offset + min(length, FIRST)
        last = ranges[-1]
        if start - last[1] <= NEAR and end - last[0] <= LARGEST:
            ranges[-1] = (last[0], max(last[1], end))
        else:
            ranges.append((start, end))
        at = max(at, offset + length)
    for each in [pool.submit(partial.fetch, *one) for one in ranges]:
        each.result()


def image_heads(
    store: Store, items: Sequence[RemoteObject], folder: Path
) -> list[tuple[RemoteObject, Path, ImageProbe]]:
    """Scan the headers of objects that are images: each with a file of its size, a hole. One that is gone is an empty
    file, which is quarantined."""

    def first(partial: Partial) -> None:
        try:
            partial.fetch(0, min(FIRST, partial.item.size))
        except Missing:
            partial.empty()

    partials = [Partial(store, item, folder / f"{os.getpid()}-{number}") for number, item in enumerate(items)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(first, partials))
    with ExitStack() as stack:
        for partial in partials:
            stack.enter_context(filled(partial.path, partial.fill))
        found = images_apart([partial.path for partial in partials], 1, HEADERS)
    return [(partial.item, partial.path, image) for partial, image in zip(partials, found, strict=True)]
