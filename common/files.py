"""Files that are complete or absent, also after a kill or a power cut; fingerprints; locks."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

# What NumPy and zipfile raise for a damaged .npz, depending on which byte is wrong.
NPZ_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error, struct.error),
    *(NotImplementedError, RuntimeError, MemoryError, OverflowError, SyntaxError, RecursionError),
)


@contextmanager
def replacing_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """A name in `path`'s folder for the block to write to; the file then takes the place of `path`.

    durable: synced before and after the renaming, so that it also survives a power cut. If the block fails, `path`
    stays as it was and nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """`replacing_path` with a binary file, open for writing."""
    with replacing_path(path, durable) as temporary, temporary.open("wb") as file:
        yield file


def write_atomically(path: Path, text: str, durable: bool = True) -> None:
    """Replace `path` by `text` in UTF-8: either the old or the new contents are there."""
    with replacing_path(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_at(descriptor: int, data: bytes, start: int) -> None:
    """Write all bytes to an open file from byte `start` on. A call of the system may write a part of them where the
    disk is nearly full, without an error."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, start)
        view, start = view[written:], start + written


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: IO[Any]) -> None:
    """Make what was written to an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def sha256(path: Path, count: Callable[[int], Any] | None = None) -> str:
    """Hex digest of a file's bytes. count: called with the bytes of each part that has been read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
            if count is not None:
                count(len(part))
    return digest.hexdigest()


def fingerprint(path: Path, count: Callable[[int], Any] | None = None) -> dict[str, Any]:
    """`bytes` and `sha256` of a file; count: see `sha256`."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path, count)}


def lock(path: Path, wait: bool = True) -> IO[str]:
    """Take the exclusive lock on `path`, which is made if absent; closing the returned text file releases it.

    wait: until the present holder releases it; otherwise BlockingIOError is raised at once. The kernel releases the
    lock when its holder dies, so a kill leaves no stale lock.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[IO[str]]:
    """Hold the exclusive lock on `path` during the block; see `lock`."""
    with lock(path, wait) as file:
        yield file
