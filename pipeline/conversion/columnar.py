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

from pipeline.conversion.spool import ABSENT, TAR_BYTES, Foreign, Sample
from pipeline.dataset.table import DatasetError

SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)\b", re.IGNORECASE)
ROWS = 64  # read at once


class Columns(NamedTuple):
    """Where images and labels are: names of the columns (label '' without), and the class names, () if unknown."""

    image: str
    label: str
    classes: tuple[str, ...]


def columnar_source(files: Sequence[Path], root: Path | None = None) -> Foreign:
    """The source that these files of one kind make up; `root`: the folder in which they were searched. Raises
    DatasetError."""
    groups = _splits(files)
    if len(groups) > 1:
        named = ", ".join(str(group.relative_to(root) if root else group.name) for group in groups)
        first = next((group for group in groups if "train" in str(group).lower()), groups[0])
        raise DatasetError(f"holds several splits ({named}); name one, e.g. make convert SRC='{first}' ...")
    columns = _columns(_schema(files[0]), files[0].name)
    kind = SUFFIXES[files[0].suffix.lower()]
    size = sum(_spooled_bytes(path, columns.image) for path in files)
    return Foreign(kind, [str(path) for path in files], files, samples, size, columns.classes)


def columnar_below(root: Path) -> list[Path]:
    """The files of one kind one or two levels below a folder: a clone from Hugging Face's hub (`data/train-*.parquet`),
    what `datasets` saves (`train/*.arrow`)."""
    for suffix in SUFFIXES:
        found = sorted(path for depth in ("*", "*/*") for path in root.glob(f"{depth}/*{suffix}") if holds_rows(path))
        if visible := [path for path in found if not any(part[0] == "." for part in path.relative_to(root).parts)]:
            return visible
    return []


def holds_rows(path: Path) -> bool:
    """`datasets` keeps its caches beside the files; metadata.parquet lies beside the images of an image folder."""
    return path.is_file() and path.stem != "metadata" and not path.name.startswith("cache-")


def _splits(files: Sequence[Path]) -> list[Path]:
    """The patterns of the splits that these files make up, by their names or else by their folders."""
    named = {path.parent / f"{split[0]}*{path.suffix}" for path in files if (split := SPLIT.match(path.name))}
    folders = {path.parent for path in files} - {pattern.parent for pattern in named}
    return sorted(named | {folder / f"*{files[0].suffix}" for folder in folders})


def samples(path: str) -> Iterator[Sample]:
    """All rows of one file, in order. An image without bytes is b'', or the file named in their place (ABSENT if it is
    not there). Raises DatasetError."""
    import pyarrow

    name, number = Path(path), 0
    image, label, _ = _columns(_schema(name), name.name)
    try:
        for batch in _batches(name, [image, *([label] if label else [])]):
            images, labels = batch.column(image), batch.column(label) if label else None
            for row in range(len(images)):
                cell = images[row].as_py() or {}
                called = os.path.splitext(os.path.basename(cell.get("path") or ""))[0] or f"{name.stem}-{number:08d}"
                value = -1 if labels is None else labels[row].as_py()
                data = cell.get("bytes") or _named(name.parent, cell.get("path"))
                yield Sample(called, data, _label(value, f"{name.name}: row {number}"))
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(name, error) from None


def _named(folder: Path, path: str | None) -> bytes:
    """The image file `path` of a row that holds no bytes; only below `folder`: the row may come from anywhere."""
    if not path:
        return b""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return ABSENT
    return file.read_bytes()


def _spooled_bytes(path: Path, image: str) -> int:
    """About what the images of a file take in a tar. Raises DatasetError."""
    import pyarrow
    from pyarrow import parquet

    try:
        if path.suffix.lower() != ".parquet":
            return path.stat().st_size + TAR_BYTES * sum(batch.num_rows for batch in _batches(path, []))
        found = parquet.read_metadata(path)
        groups = (found.row_group(index) for index in range(found.num_row_groups))
        columns = (group.column(index) for group in groups for index in range(group.num_columns))
        of_images = (column for column in columns if column.path_in_schema.partition(".")[0] == image)
        return sum(column.total_uncompressed_size for column in of_images) + TAR_BYTES * found.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


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
