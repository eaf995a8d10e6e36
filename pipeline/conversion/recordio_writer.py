"""A RecordIO shard (MXNet's .rec) with its index, for DALI's `fn.readers.mxnet`.

`pipeline.dataset.records.recordio` describes the format.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from common.files import sync_file, write_atomically
from pipeline.conversion.rewrite import Rewritten
from pipeline.dataset.images import BadImage
from pipeline.dataset.records.recordio import HEADER, LONGEST, MARK

LARGEST_LABEL = 1 << 24  # float32 holds whole numbers up to it


class RecordIOFile:
    """A shard that is being written."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        self.index: list[str] = []
        self.digest = hashlib.sha256()
        self.file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115

    def add(self, image: Rewritten, key: str, label: int) -> int:
        """Append the image, which `without_marks` has seen; returns the offset of its bytes. Label -1 is none."""
        header = MARK + struct.pack("<I", HEADER.size + len(image.data)) + HEADER.pack(0, label, len(self.index), 0)
        record = header + image.data + bytes(-len(image.data) % 4)
        self.file.write(record)
        self.digest.update(record)
        self.index.append(f"{len(self.index)}\t{self.position}\n")
        offset = self.position + len(header)
        self.position += len(record)
        return offset

    def close(self) -> dict[Path, str]:
        """Finish the shard and its index (number and offset of each record, as rec2idx writes it)."""
        with self.file:
            sync_file(self.file)
        if not self.index:
            return {}
        index = self.path.with_suffix(".idx")
        write_atomically(index, "".join(self.index))
        return {self.path: self.digest.hexdigest(), index: hashlib.sha256("".join(self.index).encode()).hexdigest()}


def without_marks(data: bytes) -> bytes:
    """The image's bytes without a mark at a multiple of 4, where a reader would take it for the start of a record.

    About one JPEG of 100 KB in 170,000 has one. It gets a comment that moves what follows by 1 to 3 bytes; its pixels
    stay. Raises BadImage for another format with a mark, and for an image that is too large for a record.
    """
    if HEADER.size + len(data) > LONGEST:
        raise BadImage("too large")
    if not has_mark(data):
        return data
    if data[:3] == b"\xff\xd8\xff":
        after = 4 + int.from_bytes(data[4:6], "big")  # the first segment (JFIF, EXIF) stays first
        for count in (1, 2, 3):
            comment = b"\xff\xfe" + (2 + count).to_bytes(2, "big") + bytes(count)
            moved = data[:after] + comment + data[after:]
            if not has_mark(moved):
                return moved
    raise BadImage("holds RecordIO's mark of a record")


def has_mark(data: bytes) -> bool:
    """Whether the mark stands at a multiple of 4 bytes."""
    at = data.find(MARK)
    while at % 4 and at >= 0:
        at = data.find(MARK, at + 1)
    return at >= 0
