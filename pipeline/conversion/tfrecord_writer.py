"""A TFRecord shard with DALI's index: one tf.train.Example per image, written without TensorFlow.

Every record has every feature, since DALI 2.4.0 does not use the default of one that is absent:

    image/encoded bytes, image/format (jpeg, png, webp, ...), image/filename (the key), image/class/label (from 0 on; -1
    without), image/class/text (name of the class, or empty), image/height, image/width (pixels)

A record is: length (uint64), masked CRC-32C of it, message, masked CRC-32C of the message; all little-endian.
Source: tensorflow.org/tutorials/load_data/tfrecord and TensorFlow's example.proto, feature.proto.
"""

from __future__ import annotations

import hashlib
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from common.files import sync_file, write_atomically
from pipeline.conversion.rewrite import Rewritten

FORMATS = {"jpg": "jpeg"}  # suffix -> TensorFlow's name of the format, where they differ


class TFRecordFile:
    """A shard that is being written. classes: names of the labels, or ()."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self.path, self.classes, self.position = path, classes, 0
        self.index: list[str] = []
        self.digest = hashlib.sha256()
        self.file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115

    def add(self, image: Rewritten, key: str, label: int) -> int:
        """Append the image; returns the offset of its bytes in the file."""
        name = self.classes[label] if 0 <= label < len(self.classes) else ""
        message = example(image, key, label, name)
        length = struct.pack("<Q", len(message))
        record = b"".join((length, masked_crc(length), message, masked_crc(message)))
        self.file.write(record)
        self.digest.update(record)
        self.index.append(f"{self.position} {len(record)}\n")
        self.position += len(record)
        return self.position - 4 - len(image.data)

    def close(self) -> dict[Path, str]:
        """Finish the shard and its index (offset and length of each record, as tfrecord2idx writes it)."""
        with self.file:
            sync_file(self.file)
        if not self.index:
            return {}
        index = self.path.with_suffix(".idx")
        write_atomically(index, "".join(self.index))
        return {self.path: self.digest.hexdigest(), index: hashlib.sha256("".join(self.index).encode()).hexdigest()}


def example(image: Rewritten, key: str, label: int, class_name: str) -> bytes:
    """The tf.train.Example of an image. It ends with the bytes of the image, so that they can be read in place."""
    features = {
        "image/class/label": _integer(label),
        "image/class/text": _bytes(class_name.encode()),
        "image/filename": _bytes(key.encode()),
        "image/format": _bytes(FORMATS.get(image.suffix, image.suffix).encode()),
        "image/height": _integer(image.height),
        "image/width": _integer(image.width),
        "image/encoded": _bytes(image.data),
    }
    entries = (_field(1, name.encode()) + _field(2, value) for name, value in features.items())
    return _field(1, b"".join(_field(1, entry) for entry in entries))


def masked_crc(data: bytes) -> bytes:
    """The four bytes that guard `data` in a TFRecord."""
    value = int(_crc32c(np.frombuffer(data, np.uint8), _crc_tables()))
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# ---------------------------------------------------------------------------------------------- protocol buffers


def _field(number: int, body: bytes) -> bytes:
    """A field of bytes or of a message."""
    return bytes([number << 3 | 2]) + _varint(len(body)) + body


def _bytes(body: bytes) -> bytes:
    return _field(1, _field(1, body))  # Feature.bytes_list.value


def _integer(number: int) -> bytes:
    return _field(3, _field(1, _varint(number & (1 << 64) - 1)))  # Feature.int64_list.value


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


# ---------------------------------------------------------------------------------------------- CRC-32C


@cache
def _crc_tables() -> NDArray[np.uint32]:
    """(8, 256): the CRC-32C of a byte that is followed by 0 to 7 zero bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    tables = [table]
    for _ in range(7):
        tables.append(tables[-1] >> 8 ^ table[tables[-1] & 255])
    return np.stack(tables)


@njit(cache=True, nogil=True)
def _crc32c(data: Any, tables: Any) -> Any:  # eight bytes a turn: 60 times as fast as one in Python
    crc = np.uint32(0xFFFFFFFF)
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        crc ^= (
            np.uint32(data[at]) | np.uint32(data[at + 1]) << np.uint32(8)
            | np.uint32(data[at + 2]) << np.uint32(16) | np.uint32(data[at + 3]) << np.uint32(24)
        )  # fmt: skip
        crc = (
            tables[7, crc & np.uint32(255)] ^ tables[6, crc >> np.uint32(8) & np.uint32(255)]
            ^ tables[5, crc >> np.uint32(16) & np.uint32(255)] ^ tables[4, crc >> np.uint32(24)]
            ^ tables[3, data[at + 4]] ^ tables[2, data[at + 5]] ^ tables[1, data[at + 6]] ^ tables[0, data[at + 7]]
        )  # fmt: skip
    for at in range(whole, len(data)):
        crc = tables[0, (crc ^ np.uint32(data[at])) & np.uint32(255)] ^ crc >> np.uint32(8)
    return crc ^ np.uint32(0xFFFFFFFF)
