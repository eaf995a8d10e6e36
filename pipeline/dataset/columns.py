"""Arrays in an uncompressed .npz, written so that they can be memory-mapped: processes of a node share their pages."""

from __future__ import annotations

import io
import mmap
import os
import struct
import sys
import tempfile
import zlib
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

MAPPED_FROM = 64 << 20  # bytes of a file; a smaller one is read, so that no write into it can disturb a run
ALIGNMENT = 64  # bytes
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a member of a zip; its name and its extra field follow
LONG_SIZES = 20  # bytes of the extra field that zipfile adds for files beyond 4 GiB
PADDING = 0x4E50  # number of the extra field that holds nothing
FIRST_BYTES = 1 << 16  # of a member; the .npy header is in them
BLOCK = 1 << 24  # bytes
SPOOLED = 1 << 22  # bytes of a column from which on it is in a file, while it is made
ROWS = 1 << 20  # rows at a time, so that values in between need a few MB


def write_columns(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an .npz that `np.load` reads too. Each array begins at a multiple of `ALIGNMENT` in the file, and no more
    than some MB of it is copied at a time."""
    with ZipFile(file, "w", ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = ZipInfo(f"{name}.npy")
            start = file.tell() + LOCAL_HEADER.size + len(info.filename) + 4 + LONG_SIZES
            padding = -start % ALIGNMENT
            info.extra = struct.pack("<HH", PADDING, padding) + bytes(padding)
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def read_columns(path: Path, mapped_from: int = MAPPED_FROM) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed .npz, read-only. Those of a file of at least `mapped_from` bytes are memory-mapped.

    Every checksum is checked, which reads the whole file once. Raises one of `common.files.NPZ_DAMAGE` if the file is
    damaged or no .npz.
    """
    with open(path, "rb") as file, ZipFile(file) as archive:
        whole: Any = file
        if os.fstat(file.fileno()).st_size >= mapped_from:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        else:
            file.seek(0)
            whole = memoryview(file.read())
        return {info.filename.removesuffix(".npy"): _array(_member(whole, info)) for info in archive.infolist()}


def _member(whole: memoryview, info: ZipInfo) -> memoryview:
    """The bytes of a member, if they have its checksum. Raises BadZipFile."""
    header = LOCAL_HEADER.unpack_from(whole, info.header_offset)
    start = info.header_offset + LOCAL_HEADER.size + header[9] + header[10]
    data = whole[start : start + info.file_size]
    if header[0] != b"PK\3\4" or info.compress_type != ZIP_STORED or len(data) != info.file_size:
        raise BadZipFile(f"{info.filename} is cut short or compressed")
    checksum = 0
    for first in range(0, len(data), BLOCK):
        checksum = zlib.crc32(data[first : first + BLOCK], checksum)
    if checksum != info.CRC:
        raise BadZipFile(f"bad checksum of {info.filename}")
    return data


def _array(data: memoryview) -> NDArray[Any]:
    """The array in an .npy. An older file's array, which begins anywhere, is copied to an aligned place."""
    head = io.BytesIO(data[:FIRST_BYTES])
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError("an array with an unusual header")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(head)
    if dtype.hasobject or columns_first:
        raise ValueError("an array of another kind")
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(data, dtype, count, head.tell()) if count else np.empty(0, dtype)
    return np.require(array.reshape(shape), requirements="A")


def blocks(rows: int) -> list[slice]:
    """Consecutive parts of `rows` rows, at most ROWS each."""
    return [slice(first, min(first + ROWS, rows)) for first in range(0, rows, ROWS)]


def new_column(rows: int, dtype: Any, folder: Path | None) -> NDArray[Any]:
    """Zeros, (rows,). Many of them are in a file without a name in `folder`: they take no memory of this process."""
    size = rows * np.dtype(dtype).itemsize
    if folder is None or size < SPOOLED:
        return np.zeros(rows, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a signal later
        return np.frombuffer(mmap.mmap(file.fileno(), size), dtype)


class Growing:
    """Values that are appended one after the other. Many of them wait in a file without a name in `folder`.

    code: the type of `array.array`.
    """

    def __init__(self, code: str, folder: Path | None) -> None:
        self.pending, self.folder = array(code), folder
        self.file: IO[bytes] | None = None
        self.most = SPOOLED // self.pending.itemsize if folder else sys.maxsize

    def append(self, value: int) -> None:
        self.pending.append(value)
        if len(self.pending) > self.most:
            self._write()

    def extend(self, data: bytes) -> None:
        self.pending.frombytes(data)
        if len(self.pending) > self.most:
            self._write()

    def whole(self, dtype: Any) -> NDArray[Any]:
        """All values, (n,), read-only if there are many; nothing can be appended any more."""
        if self.file is None:
            return np.frombuffer(self.pending, dtype)
        self._write()
        with self.file as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)

    def _write(self) -> None:
        if self.file is None:
            self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        self.pending.tofile(self.file)
        self.file.flush()
        self.pending = array(self.pending.typecode)
