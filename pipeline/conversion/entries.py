"""The images of a source as byte ranges of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, Int64

from pipeline.dataset.channels.bands import packed
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.inside.names import is_inside
from pipeline.dataset.inside.read import read_inside
from pipeline.dataset.table import Names


@dataclass(frozen=True, eq=False)
class Entries:
    """The N images of a source, each a byte range of a file.

    root: folder to which `files` are relative; file: (N,) int32 index into `files`.
    offset, length: (N,) int64 byte range; length -1 is the whole file, or image `offset` of a place inside of a file
    (see `pipeline.dataset.inside`).
    label: (N,) int32, -1 without; classes: names of the labels, () if unknown.
    keys: valid WebDataset keys without suffix, distinct even if case is ignored.
    shape: (N, 2) int32 height and width if the bytes are raw RGB pixels, (0, 0) for an encoded image.
    pixels: the format of all images, if the source states it; with bare samples (`stored`) each image has these.
    Of files it may state the layout alone.
    kind: of `pipeline.dataset.finding.find.Found`, or 'webdataset'.
    origin: fingerprint of the names, sizes and times of the files that the user gave.
    bands: (N, B - 1, 3) int64 file, offset and length of the further files of images of several bands, or None; `read`
    puts their bytes together.
    refused: name -> reason, for images that are not read; left_out: number of files that are no images, by extension.
    """

    root: Path
    files: Names
    file: Int32[np.ndarray, " n"]
    offset: Int64[np.ndarray, " n"]
    length: Int64[np.ndarray, " n"]
    label: Int32[np.ndarray, " n"]
    keys: Names
    shape: Int32[np.ndarray, "n 2"]
    classes: tuple[str, ...]
    kind: str
    origin: str
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    pixels: PixelFormat = COLOR
    bands: Int64[np.ndarray, "n bands 3"] | None = None

    def __len__(self) -> int:
        return len(self.file)

    def fingerprint(self) -> str:
        """SHA-256 of the source's files (name, size, time) and of the entries."""
        digest = hashlib.sha256(f"{self.kind} {self.origin} {len(self)}".encode())
        for blob in (self.keys.blob, Names.of(self.classes).blob):
            digest.update(blob)
        bands = () if self.bands is None else (self.bands,)
        for column in (self.file, self.offset, self.length, self.label, self.shape, *bands):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def read(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> list[bytes]:
        """The bytes of `rows`, in their order; reads in the order of the disk, with one file open at a time.

        Returns fewer bytes if a file has become shorter. Raises OSError if a file is gone or cannot be read, and
        BadImage for a frame.
        """
        numbers = [int(row) for row in rows]
        places = [(int(self.file[row]), int(self.offset[row]), int(self.length[row])) for row in numbers]
        if self.bands is None:
            return self._ranges(places)
        further = [self._ranges(self.bands[row].tolist()) for row in numbers]
        return [packed([first, *others]) for first, others in zip(self._ranges(places), further, strict=True)]

    def _ranges(self, places: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """The bytes of ranges (file, offset, length)."""
        data = [b""] * len(places)
        opened, file = -1, None
        try:
            for position in sorted(range(len(places)), key=places.__getitem__):
                number, offset, length = places[position]
                if is_inside(name := self.files[number]):
                    data[position] = read_inside(self.root, name, offset)
                    continue
                if number != opened or file is None:
                    if file is not None:
                        file.close()
                    opened = number
                    file = open(self.root / name, "rb", buffering=0)  # noqa: SIM115
                length = length if length >= 0 else os.fstat(file.fileno()).st_size
                data[position] = _pread(file.fileno(), length, offset)
        finally:
            if file is not None:
                file.close()
        return data


def _pread(descriptor: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes from `offset` on; a single call of pread gives at most 2 GB."""
    data = os.pread(descriptor, length, offset)
    while data and len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
