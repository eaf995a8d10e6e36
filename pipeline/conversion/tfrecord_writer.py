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
from pathlib import Path

from common.files import sync_file, write_atomically
from pipeline.conversion.rewrite import Rewritten
from pipeline.dataset.records.crc32c import masked_crc

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
