"""Lists a TFRecord as byte ranges: parses the tf.train.Examples without reading their images.

A record is: length (uint64), masked CRC-32C of it, message, masked CRC-32C of the message; all little-endian. A message
is a map from names to features, each a list of bytes, floats or integers.
Source: tensorflow.org/tutorials/load_data/tfrecord and TensorFlow's example.proto, feature.proto.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.dataset.finding.choice import Choice, chosen_image, chosen_label
from pipeline.dataset.finding.labels import Label, label_of
from pipeline.dataset.records.crc32c import masked_crc
from pipeline.dataset.records.listing import Records, Window
from pipeline.dataset.records.protobuf import BYTES, Field, fields, signed, varint
from pipeline.dataset.table import DatasetError

TEXT = "image/class/text"  # the name of image/class/label in the records of TF-Slim and of `make convert`
NUMBERED = "image/class/label"
LARGEST_VALUE = 1 << 16  # bytes of a label or name
LOOKED_AT = 100  # records that say which features hold images and labels


class Feature(NamedTuple):
    """kind: 1 bytes, 2 floats, 3 integers; values: their number; start, length: byte range of the first value or, for
    numbers, of the list."""

    kind: int
    values: int
    start: int
    length: int


def list_tfrecord(path: str, choice: Choice) -> Records:
    """The images of an uncompressed TFRecord. Raises DatasetError if it is damaged or compressed, or if it is not clear
    which of its features are the image and the label."""
    name = os.path.basename(path)
    records = Records()
    with open(path, "rb") as file:
        window = Window(file.fileno())
        image, label = _chosen(window, name, choice)
        names = _names_of_labels(Path(path), label)
        for start, end in _messages(window, name):
            features = _features(window, start, end, name)
            found = features.get(image)
            if found is None or found.kind != 1 or found.values != 1:
                records.left_out["record without an image"] += 1
                continue
            key = _text(window, features.get("image/filename")) or f"{name}-{len(records.keys):06d}"
            records.add(found.start, found.length, key, _label(window, features, label, names, name))
    return records


def _chosen(window: Window, name: str, choice: Choice) -> tuple[str, str]:
    """The features of the image and the label, '' without: by the first records, as one of them may lack some."""
    images: set[str] = set()
    values: dict[str, int] = {}  # the most that a record has
    for start, end in islice(_messages(window, name), LOOKED_AT):
        features = _features(window, start, end, name)
        images |= {key for key, one in features.items() if _is_image(window, one)}
        values |= {key: max(one.values, values.get(key, 0)) for key, one in features.items()}
    if values and not images:
        raise DatasetError(f"{name}: no feature holds an encoded image ({', '.join(sorted(values))})")
    image = chosen_image(sorted(images), choice) if images else ""
    return image, chosen_label([key for key in sorted(values) if values[key] == 1 and key not in images], choice)


def _messages(window: Window, name: str) -> Iterator[tuple[int, int]]:
    """Start and end of each message."""
    at = 0
    while at < window.size:
        head = window.read(at, 12)
        if len(head) < 12 or masked_crc(head[:8]) != head[8:]:
            kind = "compressed" if not at and head[:2] in (b"\x1f\x8b", b"\x78\x9c") else f"damaged at byte {at}"
            raise DatasetError(f"{name}: no TFRecord, or {kind}; unpack or copy it again")
        (length,) = struct.unpack("<Q", head[:8])
        if at + 16 + length > window.size:
            raise DatasetError(f"{name}: cut short in the record at byte {at}; copy it again")
        yield at + 12, at + 12 + length
        at += 16 + length


def _features(window: Window, start: int, end: int, name: str) -> dict[str, Feature]:
    features = {}
    try:
        for one in _parts(window, start, end):
            for entry in _parts(window, one.start, one.end) if one.number == 1 else ():
                parts = {part.number: (part.start, part.end) for part in _parts(window, entry.start, entry.end)}
                if 1 in parts and 2 in parts and parts[1][1] - parts[1][0] < LARGEST_VALUE:
                    key = window.read(parts[1][0], parts[1][1] - parts[1][0]).decode("utf-8", "replace")
                    features[key] = _feature(window, *parts[2])
    except ValueError:
        raise DatasetError(
            f"{name}: the record at byte {start} is no tf.train.Example; give records of images"
        ) from None
    return features


def _feature(window: Window, start: int, end: int) -> Feature:
    for kind, _, first, last, _ in _parts(window, start, end):
        if kind == 1:
            values = [(value.start, value.end) for value in _parts(window, first, last)]
            begin, stop = values[0] if values else (0, 0)
            return Feature(1, len(values), begin, stop - begin)
        if last - first <= LARGEST_VALUE and kind in (2, 3):
            return Feature(kind, len(_numbers(window.read(first, last - first), kind)), first, last - first)
        return Feature(kind, 2, first, last - first)  # a long list
    return Feature(0, 0, 0, 0)


def _parts(window: Window, start: int, end: int) -> Iterator[Field]:
    """The fields of a message that has only bytes or messages. Raises ValueError."""
    for field in fields(window, start, end):
        if field.wire != BYTES:
            raise ValueError("not such a message")
        yield field


def _numbers(data: bytes, kind: int) -> list[Any]:
    """The values of a FloatList (kind 2) or Int64List (3), packed or not. Raises ValueError."""
    values: list[Any] = []
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        length, at = varint(data, at) if tag & 7 == 2 else (4 if kind == 2 else 0, at)
        if kind == 2:
            values += struct.unpack(f"<{length // 4}f", data[at : at + length // 4 * 4])
            at += length
            continue
        end = at + length
        while at < end or not length:
            number, at = varint(data, at)
            values.append(signed(number))
            if not length:
                break
    return values


def _is_image(window: Window, feature: Feature) -> bool:
    return feature.kind == 1 and feature.values == 1 and window.shows_image(feature.start, feature.length)


def _text(window: Window, feature: Feature | None) -> str:
    """The only value of a feature of bytes as text, else ''."""
    if feature is None or feature.kind != 1 or feature.values != 1 or feature.length > LARGEST_VALUE:
        return ""
    return window.read(feature.start, feature.length).decode("utf-8", "replace")


def _label(window: Window, features: dict[str, Feature], field: str, names: list[str], where: str) -> Label:
    """The label of a record: the name of its class where names are known, else its number."""
    feature = features.get(field)
    if feature is None or feature.values != 1:
        return None
    if feature.kind == 1:
        return label_of(_text(window, feature), where)
    label = label_of(_numbers(window.read(feature.start, feature.length), feature.kind)[0], where)
    text = _text(window, features.get(TEXT)) if field == NUMBERED else ""
    if isinstance(label, int) and (text or label < len(names)):
        return text or names[label]
    return label


def _names_of_labels(path: Path, field: str) -> list[str]:
    """The names of the classes that TensorFlow Datasets keeps beside its files for a feature, [] without."""
    file = path.with_name(f"{field.replace('/', '-')}.labels.txt")
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if field and file.is_file() else []
