"""Random access to the bytes behind the rows of a sample table."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.images import BadImage, decode
from pipeline.dataset.ppm import to_ppm
from pipeline.dataset.table import SampleTable, State


class ReadError(OSError):
    """A row whose bytes are gone, changed, or no image any more."""

    def __init__(self, row: int, name: str, reason: str) -> None:
        super().__init__(f"row {row} ({name}): {reason}")
        self.row, self.name, self.reason = row, name, reason


class Reader:
    """Reads rows by byte range, many at once; safe to share between threads.

    threads: files that are read at the same time (they wait for storage, not for the CPU).
    open_files: shards that are kept open, the least recently used is closed first.

    A single .beton is read in the caller's thread, after the system was told of all rows that are wanted: measured on
    two busy cores with 100 kB rows that are in memory, 25 us of CPU time a row against 40 to 80 in eight threads. (A
    memory map takes 10 to 20, and ends the process without a word where the file is cut short meanwhile.)
    """

    def __init__(self, table: SampleTable, threads: int = 8, open_files: int = 512) -> None:
        self.table = table
        self._loose = table.loose  # asking costs a look at every row
        self._threads = max(1, threads)
        self._single = len(table.containers) == 1 and table.containers[0].lower().endswith(".beton")
        self._pool: ThreadPoolExecutor | None = None
        self._shards: OrderedDict[int, _Descriptor] = OrderedDict()
        self._open_files, self._lock = max(1, open_files), Lock()

    def read(self, rows: Iterable[int] | NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Encoded bytes of each row, (n,) uint8, read-only: the file's own for State.OK, a PPM of the
        canonical decode for State.PIL and of the pixels for State.RAW. Raises ReadError for the first row
        that fails."""
        found = self.try_read(rows)
        for item in found:
            if isinstance(item, ReadError):
                raise item
        return found  # type: ignore[return-value]

    def try_read(self, rows: Iterable[int] | NDArray[np.int64]) -> list[NDArray[np.uint8] | ReadError]:
        """Like `read`, with the ReadError in the place of each row that fails."""
        wanted = [int(row) for row in rows]
        if self._threads == 1 or self._single or len(wanted) < 2:
            return self._some(wanted)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")
        # One task per thread, not per row: a small image takes less time than handing it over.
        share = -(-len(wanted) // self._threads)
        parts = [wanted[first : first + share] for first in range(0, len(wanted), share)]
        return list(chain.from_iterable(self._pool.map(self._some, parts)))

    def decode(self, row: int) -> NDArray[np.uint8]:
        """The row's pixels, `(H, W, 3)` uint8 RGB, by the canonical decode. Raises ReadError."""
        data = self._bytes(int(row))
        if int(self.table.state[row]) == State.RAW:
            return data.reshape(self.table.height[row], self.table.width[row], 3)
        try:
            return decode(data.tobytes())
        except BadImage as error:
            raise ReadError(int(row), self.table.name(row), error.reason) from None

    def ppm(self, row: int) -> NDArray[np.uint8]:
        """The same pixels as the bytes of a PPM, (n,) uint8. Raises ReadError."""
        return np.frombuffer(to_ppm(self.decode(row)), np.uint8)

    def close(self) -> None:
        """Close files and threads; the next read opens them again."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        with self._lock:
            self._shards.clear()

    def _some(self, rows: Sequence[int]) -> list[NDArray[np.uint8] | ReadError]:
        found: list[NDArray[np.uint8] | ReadError] = []
        if self._single:
            self._read_ahead(rows)
        for row in rows:
            try:
                # As an int: NumPy takes 7 us to compare one of its own with an enum.
                native = int(self.table.state[row]) not in (State.PIL, State.RAW)
                found.append(self._bytes(row) if native else self.ppm(row))
            except ReadError as error:
                found.append(error)
        return found

    def _bytes(self, row: int) -> NDArray[np.uint8]:
        table = self.table
        if int(table.state[row]) == State.QUARANTINED:
            raise ReadError(row, table.name(row), f"quarantined: {table.quarantine[row]}")
        length, offset = int(table.length[row]), int(table.offset[row])
        try:
            if self._loose:
                file = _Descriptor(table.root / table.containers[table.container[row]])
                data = np.frombuffer(os.pread(file.number, length + 1, 0), np.uint8)  # one more shows a file that grew
            else:
                file = self._shard(int(table.container[row]))  # held by name until it is read
                data = np.frombuffer(os.pread(file.number, length, offset), np.uint8)
        except OSError as error:
            raise ReadError(row, table.name(row), error.strerror or "unreadable") from None
        if len(data) != length:
            changed = f"{len(data)} bytes where the table has {length}" if len(data) < length else "grew"
            raise ReadError(row, table.name(row), f"changed since the table was made ({changed})")
        return data

    def _read_ahead(self, rows: Sequence[int]) -> None:
        """Let storage fetch all rows at once, so that whoever touches them first need not wait for each."""
        try:
            file = self._shard(0)
        except OSError:
            return  # reading says by row what is wrong
        for row in rows:
            os.posix_fadvise(
                file.number, int(self.table.offset[row]), int(self.table.length[row]), os.POSIX_FADV_WILLNEED
            )

    def _shard(self, container: int) -> _Descriptor:
        with self._lock:
            shard = self._shards.get(container)
            if shard is None:
                shard = _Descriptor(self.table.root / self.table.containers[container])
                self._shards[container] = shard
                if len(self._shards) > self._open_files:
                    self._shards.popitem(last=False)
            else:
                self._shards.move_to_end(container)
            return shard


class _Descriptor:
    """An open file that closes when nobody holds it: a thread may still read what the LRU list has let go."""

    def __init__(self, path: os.PathLike[str]) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
