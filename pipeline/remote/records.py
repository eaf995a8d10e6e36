"""Images on the local disk, in a bounded number of bytes: those that training needs next stay.

The order of training is known, so the eviction is Belady's (IBM Systems Journal 5(2), 1966): out goes the image whose
next use is farthest away. An image that would go out at once is not written.

Each rank of a node has its share of the bound and decides about the files that it wrote; every rank reads all files.
A file appears under its name when it is complete, and its checksum is compared when it is read, so neither a kill nor a
power cut leaves one that counts.
"""

from __future__ import annotations

import heapq
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from common.cli import note
from common.files import lock
from pipeline.remote.probes import UNKNOWN

NEVER = 1 << 62  # a use that is not known


class Records:
    """The images that this process keeps, by row. Safe to share between threads.

    folder: of the node's ranks. quota: bytes that this rank may keep. rank, ranks: of this node; a rank takes over the
    files of earlier runs whose rows are its own modulo `ranks`. If another run holds the rank's place, nothing is kept.
    """

    def __init__(self, folder: Path, quota: int, rank: int, ranks: int) -> None:
        self.folder, self.quota = folder, quota
        self._next: dict[int, int] = {}  # row -> its next use, of the rows that this rank keeps
        self._bytes: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # (-next use, row); entries that `_next` contradicts do not count
        self._used, self._lock = 0, Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._place = lock(folder / f"rank-{rank}.lock", wait=False)
            self._adopt(rank, ranks)
        except BlockingIOError:
            note(f"{folder}: another run keeps images here; this one fetches each image when it needs it")
            self.quota = 0
        except OSError as error:  # also where the first rank of another run has just removed the folder
            note(f"{folder}: no images are kept ({error.strerror}); each is fetched when it is needed")
            self.quota = 0

    def __contains__(self, row: int) -> bool:
        return os.path.exists(self._file(row))

    def get(self, row: int, length: int, crc: int) -> bytes | None:
        """The bytes of a row; None if they are not here, or damaged."""
        try:
            with open(self._file(row), "rb", buffering=0) as file:
                data = file.read(length + 1)
        except OSError:
            return None
        if len(data) == length and crc in (UNKNOWN, zlib.crc32(data)):
            return data
        with suppress(OSError):
            os.unlink(self._file(row))
        return None

    def offer(self, row: int, data: bytes, next_use: int) -> bool:
        """Keep the bytes of a row if it is used again sooner than others; says whether they are kept."""
        with self._lock:
            if row in self._next:
                self._set(row, next_use)
                return True
            out: list[int] = []
            room = self.quota - self._used
            while room < len(data):
                farthest = self._farthest()
                if farthest is None or self._next[farthest] <= next_use:
                    for back in out:
                        self._set(back, self._next[back])
                    return False
                heapq.heappop(self._heap)
                out.append(farthest)
                room += self._bytes[farthest]
            for gone in out:
                self._forget(gone)
            self._bytes[row] = len(data)
            self._used += len(data)
            self._set(row, next_use)
        return self._write(row, data)

    def use_at(self, uses: Mapping[int, int]) -> None:
        """Tell the next use of rows; other rows than those that this rank keeps are passed over."""
        with self._lock:
            for row, use in uses.items():
                if row in self._next:
                    self._set(row, use)

    def plan(self, next_use: NDArray[np.int64]) -> None:
        """Tell the next use of every row, (rows of the table,) int64."""
        with self._lock:
            self._next = {row: int(next_use[row]) if row < len(next_use) else NEVER for row in self._next}
            self._heap = [(-use, row) for row, use in self._next.items()]
            heapq.heapify(self._heap)

    # ------------------------------------------------------------------------------------------- inside the lock

    def _set(self, row: int, next_use: int) -> None:
        self._next[row] = next_use
        heapq.heappush(self._heap, (-next_use, row))

    def _farthest(self) -> int | None:
        """The row whose next use is farthest, first in the heap; None without rows."""
        while self._heap:
            use, row = self._heap[0]
            if self._next.get(row) == -use:
                return row
            heapq.heappop(self._heap)
        return None

    def _forget(self, row: int) -> None:
        del self._next[row]
        self._used -= self._bytes.pop(row)
        with suppress(OSError):
            os.unlink(self._file(row))

    # ------------------------------------------------------------------------------------------- files

    def _file(self, row: int) -> str:
        return f"{self.folder}/{row % 1000:03d}/{row}"

    def _write(self, row: int, data: bytes) -> bool:
        name = self._file(row)
        try:
            os.makedirs(os.path.dirname(name), exist_ok=True)
            with open(f"{name}.{os.getpid()}.new", "wb") as file:  # buffered: unbuffered, a part may be written
                file.write(data)
            os.replace(f"{name}.{os.getpid()}.new", name)
            return True
        except OSError as error:
            with suppress(OSError):
                os.unlink(f"{name}.{os.getpid()}.new")
            with self._lock:
                if row in self._next:
                    self._forget(row)
                if self.quota:
                    note(f"{self.folder}: {error.strerror}; no more images are kept, each is fetched when it is needed")
                self.quota = 0
            return False

    def _adopt(self, rank: int, ranks: int) -> None:
        for part in os.scandir(self.folder):
            for entry in os.scandir(part) if part.is_dir() else ():
                if not entry.name.isdigit():  # half a file of a killed run
                    if rank == 0 and self._is_dead(entry.name):
                        with suppress(OSError):
                            os.unlink(entry.path)
                elif int(entry.name) % ranks == rank:
                    with suppress(OSError):
                        size = entry.stat().st_size
                        self._next[int(entry.name)], self._bytes[int(entry.name)] = NEVER, size
                        self._used += size
        self.plan(np.zeros(0, np.int64))
        while self._used > self.quota and (row := self._farthest()) is not None:
            self._forget(row)

    @staticmethod
    def _is_dead(name: str) -> bool:
        """Whether the process that writes `<row>.<process>.new` has ended."""
        process = name.split(".")[1] if name.count(".") == 2 else ""
        return not (process.isdigit() and os.path.exists(f"/proc/{process}"))
