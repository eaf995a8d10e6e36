"""The bytes of rows whose shards are not on this machine: fetched ahead in the order in which training needs them."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from common.files import lock
from pipeline.dataset.table import SampleTable, State
from pipeline.remote.address import RemoteObject
from pipeline.remote.faults import changed
from pipeline.remote.index import Index
from pipeline.remote.plan import NextUses, Plan, Step, place_on_node
from pipeline.remote.probes import APART, IMAGES, UNKNOWN, columns_of, mirror_path, mirror_without_images
from pipeline.remote.ranges import Span, spans
from pipeline.remote.records import NEVER, Records
from pipeline.remote.store import Store, open_store, read_range

THREADS = 32  # requests at the same time: they wait for the network
AHEAD = 96 << 20  # bytes that are fetched before they are needed


@dataclass
class Traffic:
    """Since the start: images that were asked for, and those that the disk had; bytes that had to be fetched, and those
    that were; requests."""

    images: int = 0
    kept: int = 0
    needed: int = 0
    fetched: int = 0
    requests: int = 0


def remote_rows(table: SampleTable) -> RemoteRows | None:
    """The source of a table's bytes, if its shards lie in a mirror without their images; else None."""
    mirror = mirror_without_images(table.root)
    return None if mirror is None else RemoteRows(table, mirror)


class RemoteRows:
    """Bytes of rows by number. Safe to share between threads; `close` ends its threads, and reading starts them again.

    Raises DatasetError if the mirror does not belong to the table.
    """

    def __init__(self, table: SampleTable, mirror: Path) -> None:
        self.table, self.traffic = table, Traffic()
        self.crc = columns_of(mirror, table.root, table.containers, table.container, table.offset).crc
        held, facts = Index(mirror).held, json.loads((mirror / APART).read_text())
        self._items: list[RemoteObject] = [held[mirror_path(mirror, table.root, n)].item for n in table.containers]
        self._store: Store = open_store(facts["address"])
        self._most_ahead = min(AHEAD, facts["cache_bytes"] // place_on_node()[1])
        self._records = _records_of(mirror, _digest(table), facts["cache_bytes"])
        self._cache_bytes = facts["cache_bytes"]
        self._next: NDArray[np.int64] = np.zeros(0, np.int64)
        self._last_kept = NEVER  # rows whose next use is later are not kept
        self._coming: dict[int, Future[dict[int, bytes]]] = {}
        self._uses: Counter[int] = Counter()  # how often a row in `_coming` will be read
        self._from_disk: set[int] = set()  # rows in `_coming` that the disk has, which are not written again
        self._recent: dict[int, bytes] | None = None  # what was read in the present step: a bad image repeats it
        self._turn = 0  # number of the present call of `ahead`
        self._lock, self._stop = Lock(), Event()
        self._pool: ThreadPoolExecutor | None = None
        self._writer: ThreadPoolExecutor | None = None

    def read(self, row: int) -> bytes:
        """The bytes of a row. Raises Missing if its shard is gone; DatasetError if the shard changed or the server does
        not answer."""
        with self._lock:
            if self._recent is not None and row in self._recent:
                return self._recent[row]
            if row not in self._coming:
                self._expect([row])
            future = self._coming[row]
        try:
            data = future.result()[row]
            with self._lock:
                fresh = row not in self._from_disk
                if self._recent is not None:
                    self._recent[row] = data
        finally:
            with self._lock:
                self._drop(row)
        next_use = int(self._next[row]) if row < len(self._next) else NEVER - 1
        if fresh and next_use <= self._last_kept:
            with self._lock:
                self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="keep")
                self._writer.submit(self._records.offer, row, data, next_use)
        return data

    def expect(self, rows: Sequence[int]) -> None:
        """Start to fetch rows. Each will be read as often as it is in `rows`."""
        with self._lock:
            self._expect(rows)

    def expect_more(self, rows: Sequence[int]) -> None:
        """Like `expect`, for those that are not expected already."""
        with self._lock:
            known = self._coming.keys() | (self._recent or {}).keys()
            self._expect([row for row in rows if row not in known and self._has_bytes(row)])

    def ahead(self, steps: Iterator[Step], plan: Plan | None) -> Iterator[Step]:
        """The same steps. The rows of those that follow are being fetched: of two steps, or more with up to AHEAD
        bytes and this rank's share of `data.cache_bytes`. plan: that of training, whose rows come again."""
        window: deque[tuple[Step, int]] = deque()
        waiting, uses, epoch = 0, None, -1
        self._turn += 1
        turn, self._recent = self._turn, {}
        try:
            while True:
                while (waiting < self._most_ahead or len(window) < 2) and (step := next(steps, None)) is not None:
                    if plan is not None and uses is None:
                        uses = NextUses(plan, len(self.table))
                        self._next = uses.before(step)
                        self._records.plan(self._next)
                    rows = self._readable(step)
                    size = int(self.table.length[rows].sum())
                    self.expect(rows)
                    window.append((step, size))
                    waiting += size
                if not window:
                    return
                step, size = window.popleft()
                if uses is not None:  # from here on the next use of its rows is that of the next epoch
                    node = uses.node_rows(step)
                    self._next[node] = uses.in_epoch(step.epoch + 1)[node]
                    if step.epoch != epoch:
                        epoch = step.epoch
                        self._last_kept = uses.last_kept(epoch + 1, self.table.length, self._cache_bytes)
                    self._records.use_at(dict(zip(node.tolist(), self._next[node].tolist(), strict=True)))
                yield step
                waiting -= size
                self._recent = {}
                self._drop_unread(self._readable(step), {row for later, _ in window for row in later.rows.tolist()})
        finally:
            if turn == self._turn:  # else another call has begun: this one was dropped, and ends late
                self._forget()

    def cancel(self) -> None:
        """Until `close` is called, what has failed is not tried again."""
        self._stop.set()

    def close(self) -> None:
        """End the threads. What is fetched and not yet read is dropped."""
        self._turn += 1
        self._forget()
        self._stop.set()
        pools, self._pool, self._writer = (self._pool, self._writer), None, None
        for pool in pools:
            if pool is not None:
                pool.shutdown()
        self._stop.clear()

    def _readable(self, step: Step) -> list[int]:
        return [row for row in step.rows.tolist() if self._has_bytes(row)]

    def _has_bytes(self, row: int) -> bool:
        return int(self.table.state[row]) != State.QUARANTINED

    # ------------------------------------------------------------------------------------------- inside the lock

    def _expect(self, rows: Sequence[int]) -> None:
        self._pool = self._pool or ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        self._uses.update(rows)
        self.traffic.images += len(rows)
        far = []
        for row in dict.fromkeys(rows):
            if row in self._coming:
                continue
            if row in self._records:
                self._from_disk.add(row)
                self._coming[row] = self._pool.submit(self._kept_or_fetched, row)
                self.traffic.kept += 1
            else:
                far.append(row)
        index = np.array(far, np.int64)
        columns = (self.table.container[index], self.table.offset[index], self.table.length[index])
        for span in spans(far, *(column.tolist() for column in columns)):
            future = self._pool.submit(self._fetch, span)
            self._coming.update(dict.fromkeys(span.rows, future))

    def _drop(self, row: int) -> None:
        """Count a reading of a row, and forget its bytes after the last one."""
        self._uses[row] -= 1
        if self._uses[row] <= 0:
            self._uses.pop(row)
            self._coming.pop(row, None)
            self._from_disk.discard(row)

    def _drop_unread(self, rows: Sequence[int], later: set[int]) -> None:
        """Forget rows of a step that is over: others were read in place of those that are bad."""
        with self._lock:
            for row in rows:
                if row in self._coming and row not in later:
                    self._uses[row] = 1
                    self._drop(row)

    def _forget(self) -> None:
        with self._lock:
            for future in self._coming.values():
                future.cancel()
            self._coming.clear()
            self._uses.clear()
            self._from_disk.clear()
            self._recent = None

    # ------------------------------------------------------------------------------------------- in the pool

    def _kept_or_fetched(self, row: int) -> dict[int, bytes]:
        length = int(self.table.length[row])
        data = self._records.get(row, length, int(self.crc[row]))
        if data is not None:
            return {row: data}
        with self._lock:
            self._from_disk.discard(row)
            self.traffic.kept -= 1
        start = int(self.table.offset[row])
        return self._fetch(Span(int(self.table.container[row]), start, start + length, (row,)))

    def _fetch(self, span: Span) -> dict[int, bytes]:
        """The rows of a span, whose checksums are right. Raises Missing, DatasetError."""
        item = self._items[span.container]
        needed = int(self.table.length[list(span.rows)].sum())
        for again in (True, False):
            data = read_range(self._store, item, span.start, span.end, self._stop)
            with self._lock:
                self.traffic.requests += 1
                self.traffic.fetched += len(data)
                self.traffic.needed += needed if again else 0
            rows = {row: self._part(data, span.start, row) for row in span.rows}
            if all(int(self.crc[row]) in (UNKNOWN, zlib.crc32(part)) for row, part in rows.items()):
                return rows
        raise changed(item.address)

    def _part(self, data: bytes, start: int, row: int) -> bytes:
        first = int(self.table.offset[row]) - start
        return data[first : first + int(self.table.length[row])]


def _digest(table: SampleTable) -> str:
    """Of the byte ranges, which say what a row's number means."""
    digest = hashlib.sha256()
    for column in (table.container, table.offset, table.length):
        digest.update(column.tobytes())
    return digest.hexdigest()[:12]


@cache
def _records_of(mirror: Path, digest: str, cache_bytes: int) -> Records:
    """The images that the node keeps of a table: one object in a process, as its place among the ranks is locked."""
    rank, ranks = place_on_node()
    if rank == 0:
        for other in mirror.glob(f"{IMAGES}/*"):
            if other.name != digest:
                _remove_unused(other)
    return Records(mirror / IMAGES / digest, cache_bytes // ranks, rank, ranks)


def _remove_unused(folder: Path) -> None:
    """Remove the images of another table, unless a run uses them."""
    try:
        with lock(folder / "rank-0.lock", wait=False):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
