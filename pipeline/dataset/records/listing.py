"""What a list of records holds, and a window on a large file."""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

from pipeline.dataset.finding.labels import Label


class Records(NamedTuple):
    """The images of one file, in its order: offsets and lengths in bytes, names, labels as they stand there.

    left_out: number of records that are not taken, by reason.
    """

    offsets: list[int]
    lengths: list[int]
    keys: list[str]
    labels: list[Label]
    left_out: Counter[str]


class Window:
    """Reads small pieces of a file; the images between them stay on the disk."""

    BYTES = 4096

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size = descriptor, os.fstat(descriptor).st_size
        self.start, self.data = 0, b""

    def read(self, at: int, length: int) -> bytes:
        """`length` bytes from `at` on; fewer at the end of the file."""
        if at < self.start or at + length > self.start + len(self.data):
            self.start, self.data = at, os.pread(self.descriptor, max(length, self.BYTES), at)
        return self.data[at - self.start : at - self.start + length]
