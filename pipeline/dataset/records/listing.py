"""What a list of records holds, and a window on a large file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from common.holes import pread
from pipeline.dataset.finding.labels import Label
from pipeline.dataset.sniff import HEAD, looks_like_image
from pipeline.dataset.table import DatasetError

CODECS = {".zstd": "zstd", ".gz": "gzip", ".br": "brotli", ".bz2": "bz2"}  # suffix -> pyarrow's name


class Pixels(NamedTuple):
    """How the bytes of an image that is not encoded become pixels.

    order: '' for an encoded image, 'RGB planes' or 'BGR planes' (one color after the other), else a mode of Pillow.
    Only pixels of order 'RGB' (rows of three bytes each) are read in place.
    """

    height: int = 0
    width: int = 0
    order: str = ""


ENCODED = Pixels()


@dataclass
class Records:
    """The images of one file, in its order: offsets and lengths in bytes, names, labels as they stand there, pixels.

    left_out: number of records that are not taken, by reason. packed: whether the file is compressed, so that offsets
    are those of its content.
    """

    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    packed: bool = False

    def add(self, offset: int, length: int, key: str, label: Label, pixels: Pixels = ENCODED) -> None:
        self.offsets.append(offset)
        self.lengths.append(length)
        self.keys.append(key)
        self.labels.append(label)
        self.pixels.append(pixels)


class Window:
    """Reads small pieces of a file; the images between them stay on the disk."""

    BYTES = 4096

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size = descriptor, os.fstat(descriptor).st_size
        self.start, self.data = 0, b""

    def read(self, at: int, length: int) -> bytes:
        """`length` bytes from `at` on; fewer at the end of the file."""
        if at < self.start or at + length > self.start + len(self.data):
            self.start, self.data = at, pread(self.descriptor, max(length, self.BYTES), at)
        return self.data[at - self.start : at - self.start + length]

    def shows_image(self, at: int, length: int) -> bool:
        """Whether these bytes begin like an encoded image."""
        return looks_like_image("", self.read(at, min(length, HEAD)))


def is_packed(path: str) -> bool:
    return os.path.splitext(path)[1] in CODECS


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the file; of a compressed one (see CODECS) of its content, in memory. Raises DatasetError."""
    if path.endswith(".snappy"):
        raise DatasetError(f"{os.path.basename(path)}: compressed by snappy, which is not read; unpack it or use zstd")
    if not is_packed(path):
        with open(path, "rb") as file:
            yield file.fileno()
        return
    import pyarrow

    descriptor = os.memfd_create("unpacked")
    try:
        codec = CODECS[os.path.splitext(path)[1]]
        with (
            os.fdopen(descriptor, "wb", closefd=False) as memory,
            pyarrow.input_stream(path, compression=codec) as stream,
        ):
            while block := stream.read(1 << 20):
                memory.write(block)
        yield descriptor
    except OSError as error:  # pyarrow's, of a damaged stream
        if error.errno is not None:
            raise
        raise DatasetError(f"{os.path.basename(path)}: damaged, it cannot be unpacked; copy it again") from None
    finally:
        os.close(descriptor)
