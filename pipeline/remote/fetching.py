"""Fetches whole objects into files: many at once, large ones in parts."""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

from common.files import sha256, write_at
from pipeline.remote.address import RemoteObject, shown
from pipeline.remote.faults import Missing, Temporary, changed, retrying
from pipeline.remote.store import Store, read_range

THREADS = 16
PART = 8 << 20  # bytes of a request
MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass
class _File:
    item: RemoteObject
    path: Path
    parts: int
    lock: Lock = field(default_factory=Lock)


def fetch(
    store: Store,
    items: Iterable[RemoteObject],
    folder: Path,
    done: Callable[[RemoteObject, Path, str], Any],
    count: Callable[[int], Any],
) -> None:
    """Fetch objects to numbered files in `folder`. done: called for each that is complete and verified, with its path
    and SHA-256, from one of several threads. count: called with numbers of bytes.

    An object that is gone becomes an empty file, which a scan quarantines. Raises DatasetError, and OSError for a disk
    that is full.
    """
    waiting: deque[Future[None]] = deque()
    stop = Event()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fetch") as pool:
        try:
            for file, start, end in _parts(items, folder):
                waiting.append(pool.submit(_fetch_part, store, file, start, end, done, count, stop))
                while len(waiting) >= 2 * THREADS:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise


def _parts(items: Iterable[RemoteObject], folder: Path) -> Iterator[tuple[_File, int, int]]:
    for number, item in enumerate(items):
        starts = range(0, max(item.size, 1), PART)
        file = _File(item, folder / f"{os.getpid()}-{number}", len(starts))
        file.path.touch()
        for start in starts:
            yield file, start, min(start + PART, item.size)


def _fetch_part(
    store: Store,
    file: _File,
    start: int,
    end: int,
    done: Callable[[RemoteObject, Path, str], Any],
    count: Callable[[int], Any],
    stop: Event,
) -> None:
    try:
        data = read_range(store, file.item, start, end, stop)
    except Missing:
        data = b""
    with open(file.path, "r+b", buffering=0) as target:
        write_at(target.fileno(), data, start)
    count(len(data))
    with file.lock:
        file.parts -= 1
        last = file.parts == 0
    if last:
        done(file.item, file.path, _verified(store, file))


def _verified(store: Store, file: _File) -> str:
    """The SHA-256 of a complete file. Raises Changed if it is not the object that was listed."""
    item, size = file.item, file.path.stat().st_size
    if size == 0:
        return hashlib.sha256().hexdigest()
    if size != item.size:
        raise changed(item.address)
    expected = MD5.fullmatch(item.tag) if item.address.startswith("s3:") else None
    if expected and _md5(file.path) != expected[1]:
        _fetch_twice(store, file)
    elif not item.address.startswith("http") and item.size > PART:  # its parts may be of two versions
        _check_tag(store, item)
    return sha256(file.path)


def _fetch_twice(store: Store, file: _File) -> None:
    """Fetch an object again whose MD5 is not its ETag. If the bytes are the same, the ETag is no MD5: S3 has such for
    objects that are encrypted with a key of the user's. Raises DatasetError if they differ."""
    before = _md5(file.path)

    def action() -> None:
        with open(file.path, "r+b", buffering=0) as target:
            for start in range(0, file.item.size, PART):
                end = min(start + PART, file.item.size)
                write_at(target.fileno(), read_range(store, file.item, start, end), start)
        if _md5(file.path) not in (before, file.item.tag.strip('"')):
            raise Temporary("its bytes arrive damaged")

    retrying(action, file.item.address, store.patience)
    _check_tag(store, file.item)


def _check_tag(store: Store, item: RemoteObject) -> None:
    if store.look_up(item.address, item.name).tag != item.tag:
        raise changed(item.address)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fault_of_disk(error: OSError, item: RemoteObject | None, folder: Path) -> str:
    """One line about a file that could not be written."""
    what = f" while {shown(item.address)} is fetched" if item else ""
    return f"cannot write to the cache {folder} ({error.strerror}){what}; make room, or set another data.cache"
