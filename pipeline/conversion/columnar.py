"""Parquet and Arrow files in the Hugging Face image layout, to be spooled.

An image is a struct {bytes, path}; a label is a column of integers, whose class names stand in the schema's metadata.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.conversion.spool import Foreign, Sample
from pipeline.table import DatasetError

SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)\b", re.IGNORECASE)
ROWS = 64  # read at once


class Columns(NamedTuple):
    """Where images and labels are: names of the columns (label '' without), and the class names, () if unknown."""

    image: str
    label: str
    classes: tuple[str, ...]


def columnar_source(files: Sequence[Path]) -> Foreign:
    """The source that these files of one kind make up. Raises DatasetError."""
    splits = sorted({found[0].lower() for path in files if (found := SPLIT.match(path.name))})
    if len(splits) > 1:
        pattern = f"{splits[0]}-*{files[0].suffix}"
        raise DatasetError(f"holds files of several splits ({', '.join(splits)}); give one of them as '{pattern}'")
    columns = _columns(_schema(files[0]), files[0].name)
    kind = SUFFIXES[files[0].suffix.lower()]
    return Foreign(kind, [str(path) for path in files], files, samples, columns.classes)


def samples(path: str) -> Iterator[Sample]:
    """All rows of one file, in order. An image without bytes is b''. Raises DatasetError."""
    import pyarrow

    name, number = Path(path), 0
    image, label, _ = _columns(_schema(name), name.name)
    try:
        for batch in _batches(name, [image, *([label] if label else [])]):
            images, labels = batch.column(image), batch.column(label) if label else None
            for row in range(len(images)):
                cell = images[row].as_py() or {}
                called = os.path.basename(cell.get("path") or "").rpartition(".")[0] or f"{name.stem}-{number:08d}"
                value = -1 if labels is None else labels[row].as_py()
                yield Sample(called, cell.get("bytes") or b"", _label(value, f"{name.name}: row {number}"))
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(name, error) from None


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Record batches of a file with these columns."""
    import pyarrow
    from pyarrow import ipc, parquet

    if path.suffix.lower() == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(ROWS, columns=columns, use_threads=False)
        return
    with pyarrow.memory_map(str(path)) as memory:
        try:
            file = ipc.open_file(memory)
        except pyarrow.ArrowInvalid:  # `datasets` writes the streaming format
            memory.seek(0)
            yield from ipc.open_stream(memory)
            return
        for index in range(file.num_record_batches):
            yield file.get_batch(index)


def _schema(path: Path) -> Any:
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_schema(path)
        with pyarrow.memory_map(str(path)) as memory:
            try:
                return ipc.open_file(memory).schema
            except pyarrow.ArrowInvalid:
                memory.seek(0)
                return ipc.open_stream(memory).schema
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _columns(schema: Any, name: str) -> Columns:
    """Which columns to take: an image is a struct with `bytes`, preferably called so; a label has class names, or is a
    column of integers called 'label' or 'labels'."""
    import pyarrow.types as types

    features = _features(schema)
    images = [
        field.name for field in schema
        if types.is_struct(field.type) and any(child.name == "bytes" for child in field.type)
    ]  # fmt: skip
    if not images:
        told = f"{name}: no column of images (struct with 'bytes') among {', '.join(schema.names)}"
        raise DatasetError(f"{told}; give a dataset with an Image feature")
    integers = [field.name for field in schema if types.is_integer(field.type)]
    named = [column for column in integers if features.get(column)]
    usual = [column for column in ("label", "labels", "fine_label") if column in integers]
    label = next(iter([*usual, *named]), "")
    return Columns("image" if "image" in images else images[0], label, features.get(label, ()))


def _features(schema: Any) -> dict[str, tuple[str, ...]]:
    """Class names by column, from what Hugging Face's `datasets` writes into the metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {column: feature.get("names") for column, feature in features.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {column: tuple(map(str, names)) for column, names in found.items() if isinstance(names, list)}


def _label(value: Any, where: str) -> int:
    if value is None:
        return -1
    if not -1 <= value < 2**31:
        raise DatasetError(f"{where}: label {value} is no class number; leave the column out")
    return int(value)


def _damaged(path: Path, error: Exception) -> DatasetError:
    why = " ".join(str(error).split())[:200]
    return DatasetError(f"{path.name}: no sound {SUFFIXES[path.suffix.lower()]} file ({why}); copy it anew")
