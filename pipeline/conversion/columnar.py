"""Parquet and Arrow files in the Hugging Face image layout, to be spooled.

An image is a struct {bytes, path}; a label is a column of integers, whose class names are in the schema's metadata.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.conversion.spool import ABSENT, TAR_BYTES, Sample, SpoolSource
from pipeline.dataset.table import DatasetError

SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)\b", re.IGNORECASE)
ROWS = 64  # per batch that is read


class Columns(NamedTuple):
    """Names of the columns of images and labels ('' without labels), and the class names, () if unknown."""

    image: str
    label: str
    classes: tuple[str, ...]


def columnar_source(files: Sequence[Path], root: Path | None = None) -> SpoolSource:
    """The source of these files of one kind. root: the folder in which they were searched.

    Raises DatasetError, e.g. if they belong to several splits.
    """
    groups = _splits(files)
    if len(groups) > 1:
        named = ", ".join(str(group.relative_to(root) if root else group.name) for group in groups)
        first = next((group for group in groups if "train" in str(group).lower()), groups[0])
        raise DatasetError(f"holds several splits ({named}); name one, e.g. make convert SRC='{first}' ...")
    columns = _columns(_schema(files[0]), files[0].name)
    kind = SUFFIXES[files[0].suffix.lower()]
    size = sum(_spooled_bytes(path, columns.image) for path in files)
    return SpoolSource(kind, [str(path) for path in files], files, samples, size, columns.classes)


def columnar_below(root: Path) -> list[Path]:
    """The files of one kind one or two levels below a folder: in a clone from Hugging Face's hub
    (`data/train-*.parquet`), or as `datasets` saves them (`train/*.arrow`)."""
    for suffix in SUFFIXES:
        paths = sorted(path for depth in ("*", "*/*") for path in root.glob(f"{depth}/*{suffix}") if holds_rows(path))
        if visible := [path for path in paths if not any(part[0] == "." for part in path.relative_to(root).parts)]:
            return visible
    return []


def holds_rows(path: Path) -> bool:
    """Whether a file is data: not a cache of `datasets`, and not the metadata.parquet of a folder of images."""
    return path.is_file() and path.stem != "metadata" and not path.name.startswith("cache-")


def _splits(files: Sequence[Path]) -> list[Path]:
    """A pattern for each split among these files, by file name or else by folder."""
    named = {path.parent / f"{split[0]}*{path.suffix}" for path in files if (split := SPLIT.match(path.name))}
    folders = {path.parent for path in files} - {pattern.parent for pattern in named}
    return sorted(named | {folder / f"*{files[0].suffix}" for folder in folders})


def samples(path: str) -> Iterator[Sample]:
    """All rows of one file, in order. Raises DatasetError.

    For a row without bytes the file that it names is read (ABSENT if that does not exist); without either, it is b''.
    """
    import pyarrow

    name, number = Path(path), 0
    image, label, _ = _columns(_schema(name), name.name)
    try:
        for batch in _batches(name, [image, *([label] if label else [])]):
            images, labels = batch.column(image), batch.column(label) if label else None
            for row in range(len(images)):
                cell = images[row].as_py() or {}
                stem = os.path.splitext(os.path.basename(cell.get("path") or ""))[0] or f"{name.stem}-{number:08d}"
                value = -1 if labels is None else labels[row].as_py()
                data = cell.get("bytes") or _read_named(name.parent, cell.get("path"))
                yield Sample(stem, data, _label(value, f"{name.name}: row {number}"))
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(name, error) from None


def _read_named(folder: Path, path: str | None) -> bytes:
    """The image file that a row without bytes names; only below `folder`, since the row is not trusted."""
    if not path:
        return b""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return ABSENT
    return file.read_bytes()


def _spooled_bytes(path: Path, image: str) -> int:
    """Estimated bytes of the images of a file in a tar. Raises DatasetError."""
    import pyarrow
    from pyarrow import parquet

    try:
        if path.suffix.lower() != ".parquet":
            return path.stat().st_size + TAR_BYTES * sum(batch.num_rows for batch in _batches(path, []))
        metadata = parquet.read_metadata(path)
        groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
        columns = (group.column(index) for group in groups for index in range(group.num_columns))
        of_images = (column for column in columns if column.path_in_schema.partition(".")[0] == image)
        return sum(column.total_uncompressed_size for column in of_images) + TAR_BYTES * metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Record batches of a file, with these columns (Arrow files: all columns)."""
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
    """The columns to read: an image is a struct with `bytes`, the column 'image' if there are several; a label is an
    integer called 'label', 'labels' or 'fine_label', else one with class names."""
    import pyarrow.types as types

    features = _features(schema)
    images = [
        field.name for field in schema
        if types.is_struct(field.type) and any(child.name == "bytes" for child in field.type)
    ]  # fmt: skip
    if not images:
        problem = f"{name}: no column of images (struct with 'bytes') among {', '.join(schema.names)}"
        raise DatasetError(f"{problem}; give a dataset with an Image feature")
    integers = [field.name for field in schema if types.is_integer(field.type)]
    named = [column for column in integers if features.get(column)]
    usual = [column for column in ("label", "labels", "fine_label") if column in integers]
    label = next(iter([*usual, *named]), "")
    return Columns("image" if "image" in images else images[0], label, features.get(label, ()))


def _features(schema: Any) -> dict[str, tuple[str, ...]]:
    """Class names by column, from the metadata of Hugging Face's `datasets`."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        named = {column: feature.get("names") for column, feature in features.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {column: tuple(map(str, names)) for column, names in named.items() if isinstance(names, list)}


def _label(value: Any, where: str) -> int:
    if value is None:
        return -1
    if not -1 <= value < 2**31:
        raise DatasetError(f"{where}: label {value} is not a class number; leave the column out")
    return int(value)


def _damaged(path: Path, error: Exception) -> DatasetError:
    why = " ".join(str(error).split())[:200]
    return DatasetError(f"{path.name}: damaged {SUFFIXES[path.suffix.lower()]} file ({why}); copy it again")
