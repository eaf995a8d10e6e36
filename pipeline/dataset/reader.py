"""Random access to the bytes behind the rows of a sample table."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.channels.bands import packed
from pipeline.dataset.channels.decode import decode_as, false_color
from pipeline.dataset.images import MAX_PIXELS, BadImage, decode
from pipeline.dataset.inside.names import is_inside
from pipeline.dataset.inside.read import read_place
from pipeline.dataset.ppm import to_ppm
from pipeline.dataset.table import SampleTable, State
from pipeline.remote.faults import Missing
from pipeline.remote.plan import Plan, Step
from pipeline.remote.rows import remote_rows


class ReadError(OSError):
    """The bytes of a row are gone, have changed or cannot be decoded (`undecodable`: they are those of the table)."""

    def __init__(self, row: int, name: str, reason: str, undecodable: bool = False) -> None:
        super().__init__(f"row {row} ({name}): {reason}")
        self.row, self.name, self.reason, self.undecodable = row, name, reason, undecodable


class Reader:
    """Reads rows by byte range, many at once; safe to share between threads.

    threads: files that are read at the same time (they wait for storage, not for the CPU).
    open_files: shards that are kept open; the least recently used is closed first.

    A single .beton is read in the caller's thread, after posix_fadvise for all rows: with 100 kB rows in memory on two
    busy cores, a row takes 25 us of CPU time instead of 40 to 80 in eight threads. (A memory map takes 10 to 20, but
    kills the process without a message if the file is cut short meanwhile.)

    remote: where a table's shards are not on this machine, the source of their bytes; else None.
    """

    def __init__(self, table: SampleTable, threads: int = 8, open_files: int = 512) -> None:
        self.table = table
        self._loose = table.loose  # the property looks at every row
        self._threads = max(1, threads)
        self._single = len(table.containers) == 1 and table.containers[0].lower().endswith(".beton")
        self._pool: ThreadPoolExecutor | None = None
        self._shards: OrderedDict[int, _Descriptor] = OrderedDict()
        self._open_files, self._lock = max(1, open_files), Lock()
        self.remote = remote_rows(table)

    def read(self, rows: Iterable[int] | NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Encoded bytes of each row, (n,) uint8, read-only: the file's own for State.OK and State.ARRAY, a PPM of the
        canonical decode for State.PIL and of the pixels for State.RAW. Raises ReadError for the first row that
        fails."""
        items = self.try_read(rows)
        for item in items:
            if isinstance(item, ReadError):
                raise item
        return items  # type: ignore[return-value]

    def try_read(self, rows: Iterable[int] | NDArray[np.int64]) -> list[NDArray[np.uint8] | ReadError]:
        """Like `read`, but with a ReadError in place of each row that fails."""
        numbers = [int(row) for row in rows]
        if self.remote is not None and len(numbers) > 1:
            self.remote.expect_more(numbers)
        if self._threads == 1 or self._single or len(numbers) < 2:
            return self._read_in_turn(numbers)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")
        # One task per thread, not per row: reading a small image takes less time than a task costs.
        share = -(-len(numbers) // self._threads)
        parts = [numbers[first : first + share] for first in range(0, len(numbers), share)]
        return list(chain.from_iterable(self._pool.map(self._read_in_turn, parts)))

    def ahead(self, steps: Iterator[Step], plan: Plan | None = None) -> Iterator[Step]:
        """The same steps, whose rows will be read in this order; what is not on this machine is fetched in advance.
        plan: that of training, whose rows come again."""
        return steps if self.remote is None else self.remote.ahead(steps, plan)

    def decode(self, row: int) -> NDArray[np.uint8]:
        """The row's pixels, (H, W, 3) uint8 RGB, by the canonical decode; for State.ARRAY in false color. Raises
        ReadError."""
        if int(self.table.state[row]) == State.ARRAY:
            return false_color(self.native(row))
        data = self._bytes(int(row))
        if int(self.table.state[row]) == State.RAW:
            return data.reshape(self.table.height[row], self.table.width[row], 3)
        try:
            return decode(data.tobytes(), max(MAX_PIXELS, self.table.pixels_of(row)))
        except BadImage as error:
            raise ReadError(int(row), self.table.name(row), error.reason, undecodable=True) from None

    def native(self, row: int) -> NDArray:
        """The pixels of a row in State.ARRAY, (H, W, C), in the table's format. Raises ReadError."""
        table = self.table
        try:
            data = self._bytes(int(row)).tobytes()
            return decode_as(data, table.pixels, int(table.height[row]), int(table.width[row]))
        except BadImage as error:
            raise ReadError(int(row), table.name(row), error.reason) from None

    def ppm(self, row: int) -> NDArray[np.uint8]:
        """The same pixels as the bytes of a PPM, (n,) uint8. Raises ReadError."""
        return np.frombuffer(to_ppm(self.decode(row)), np.uint8)

    def cancel(self) -> None:
        """Until `close` is called, readings that wait for a server which does not answer fail soon."""
        if self.remote is not None:
            self.remote.cancel()

    def close(self) -> None:
        """Close files and threads; the next read opens them again."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        with self._lock:
            self._shards.clear()
        if self.remote is not None:
            self.remote.close()

    def _read_in_turn(self, rows: Sequence[int]) -> list[NDArray[np.uint8] | ReadError]:
        items: list[NDArray[np.uint8] | ReadError] = []
        if self._single:
            self._read_ahead(rows)
        for row in rows:
            try:
                # As an int: comparing a NumPy integer with an enum takes 7 us.
                native = int(self.table.state[row]) not in (State.PIL, State.RAW)
                items.append(self._bytes(row) if native else self.ppm(row))
            except ReadError as error:
                items.append(error)
        return items

    def _bytes(self, row: int) -> NDArray[np.uint8]:
        table = self.table
        if int(table.state[row]) == State.QUARANTINED:
            raise ReadError(row, table.name(row), f"quarantined: {table.quarantine[row]}")
        data = self._range(row, int(table.container[row]), int(table.offset[row]), int(table.length[row]))
        if table.bands is None:
            return data
        others = [self._range(row, *place) for place in table.bands[row].tolist()]
        return np.frombuffer(packed([file.tobytes() for file in (data, *others)]), np.uint8)

    def _range(self, row: int, container: int, offset: int, length: int) -> NDArray[np.uint8]:
        table = self.table
        try:
            name = str(table.containers[container])
            if is_inside(name):
                data = np.frombuffer(read_place(table.root, name, offset, length), np.uint8)
            elif self.remote is not None:
                data = np.frombuffer(self.remote.read(row), np.uint8)
            elif self._loose:
                file = _Descriptor(table.root / name)
                data = np.frombuffer(os.pread(file.number, length + 1, 0), np.uint8)  # + 1 reveals a file that grew
            else:
                file = self._shard(container)  # the name keeps it open until it is read
                data = np.frombuffer(os.pread(file.number, length, offset), np.uint8)
        except Missing:
            raise ReadError(row, table.name(row), "missing on the server") from None
        except OSError as error:
            raise ReadError(row, table.name(row), error.strerror or "unreadable") from None
        except BadImage as error:  # of a frame
            raise ReadError(row, table.name(row), error.reason) from None
        if len(data) != length:
            changed = f"{len(data)} bytes where the table has {length}" if len(data) < length else "grew"
            raise ReadError(row, table.name(row), f"changed since the table was made ({changed})")
        return data

    def _read_ahead(self, rows: Sequence[int]) -> None:
        """Let storage fetch all rows at once, so that the reads that follow do not wait one by one."""
        try:
            file = self._shard(0)
        except OSError:
            return  # reading reports the error for each row
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
    """An open file that closes with its last reference: a thread may still read what the LRU list has dropped."""

    def __init__(self, path: os.PathLike[str]) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
