"""Files with holes that are filled when they are read: objects of which only some bytes are on this machine."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

Fill = Callable[[int, int], None]  # first byte, number of bytes

_fills: dict[tuple[int, int], Fill] = {}  # by device and inode


@contextmanager
def filled(path: Path, fill: Fill) -> Iterator[None]:
    """In this block, `fill` is called before bytes of the file are read by `pread` or `open_file` in this process."""
    status = path.stat()
    _fills[status.st_dev, status.st_ino] = fill
    try:
        yield
    finally:
        del _fills[status.st_dev, status.st_ino]


def pread(descriptor: int, length: int, at: int) -> bytes:
    """`os.pread` of a file that may have holes."""
    if _fills:
        status = os.fstat(descriptor)
        if fill := _fills.get((status.st_dev, status.st_ino)):
            fill(at, length)
    return os.pread(descriptor, length, at)


def open_file(path: str | Path) -> IO[bytes]:
    """The file, to be read; one that may have holes without a buffer."""
    if _fills:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in _fills:
            return _Holed(str(path))
    return open(path, "rb")


class _Holed(io.FileIO):
    """A file that fills its holes; what reads files is written for buffered ones, which give all bytes there are."""

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        left = max(0, os.fstat(self.fileno()).st_size - at)
        data = pread(self.fileno(), left if size is None or size < 0 else min(size, left), at)
        self.seek(at + len(data))
        return data
