"""Parquet and Arrow files in the Hugging Face image layout, and Lance datasets (a folder each), to be spooled.

An image is a struct {bytes, path}, or the bytes of a file, as img2dataset stores it; a list of structs is several
images with one label. A label is a column of whole numbers, whose class names are in the schema's
metadata, or of text, categories or floats without fractions. Names, not numbers, say which labels of two files are the
same class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.conversion.spool import ABSENT, TAR_BYTES, Sample, SpoolSource
from pipeline.dataset.finding.choice import LABELS, NOT_CHOSEN, Choice, chosen_image, chosen_label
from pipeline.dataset.finding.find import SUFFIXES, holds_rows
from pipeline.dataset.finding.labels import Label, class_names, label_of, numbering
from pipeline.dataset.finding.layout import splits_of_files
from pipeline.dataset.finding.mixed import FIELD, splits_of_values
from pipeline.dataset.sniff import HEAD, is_hidden, looks_like_image
from pipeline.dataset.table import DatasetError

ROWS = 64  # per batch that is read
COLUMNAR = (".parquet", ".arrow")
SHOWN = 8  # columns in a message


class Columns(NamedTuple):
    """Names of the columns of images and labels ('' without labels); names: the class names in the file's metadata, ()
    without; able: other columns that could hold labels."""

    image: str
    label: str
    names: tuple[str, ...]
    able: tuple[str, ...] = ()


def columnar_source(files: Sequence[Path], root: Path | None = None, choice: Choice = NOT_CHOSEN) -> SpoolSource:
    """The source of these files of one kind. root: the folder in which they were searched.

    Raises DatasetError, e.g. if they belong to several splits.
    """
    groups = splits_of_files(files)
    if len(groups) > 1:
        named = ", ".join(str(group.relative_to(root) if root else group.name) for group in groups)
        first = next((group for group in groups if "train" in str(group).lower()), next(iter(groups)))
        raise DatasetError(f"holds several splits ({named}); name one, e.g. make convert SRC='{first}' ...")
    columns = {path: _columns(path, choice) for path in files}
    if choice.image is None:
        _check_split(columns)
    first_columns = columns[files[0]]
    for path, others in columns.items():
        if (others.image, others.label) != (first_columns.image, first_columns.label):
            problem = f"{path.name} has the columns {others.image}, {others.label or 'no label'}, and {files[0].name}"
            problem += f" {first_columns.image}, {first_columns.label or 'no label'}"
            raise DatasetError(f"{problem}; convert them one by one, or choose with data.image and data.label")
    classes = _classes(columns)
    kind = _kind(files[0])
    size = sum(_spooled_bytes(path, first_columns.image) for path in files)
    note = ""
    if not first_columns.label and first_columns.able and choice.label is None:
        able = ", ".join(first_columns.able[:SHOWN])
        note = f"{files[0].name}: no column is called label, so no image is labeled; --label can name one of {able}"
    read = partial(samples, choice=choice, classes=classes)
    held = [file for path in files for file in ([path] if path.is_file() else _files_of_lance(path))]
    return SpoolSource(kind, [str(path) for path in files], held, read, size, classes, note)


def _check_split(columns: dict[Path, Columns]) -> None:
    """Raise DatasetError if a column called `split` or similar says that the rows are of several."""
    able = {name for chosen in columns.values() for name in chosen.able if name != chosen.label}
    for name in sorted(filter(FIELD.fullmatch, able)):
        values = {value for path, chosen in columns.items() if name in chosen.able for value in _values(path, name)}
        if mixed := splits_of_values(values):
            image = next(iter(columns.values())).image
            problem = f"its column {name} says that it holds several splits ({mixed})"
            raise DatasetError(
                f"{problem}; write each into a file of its own, or take all rows with data.image={image}"
            )


def _classes(columns: dict[Path, Columns]) -> tuple[str, ...]:
    """The class names of all files together; () if labels are numbers. Raises DatasetError if only some are."""
    named = dict.fromkeys(name for chosen in columns.values() for name in chosen.names)
    others: set[Label] = set()
    for path, chosen in columns.items():
        if chosen.label and not chosen.names:
            others.update(_labels(path, chosen.label))
            if named and any(isinstance(label, int) for label in others):
                problem = f"{path.name} has labels that are numbers, other files have names of classes"
                raise DatasetError(f"{problem}; convert them one by one, or leave labels out with data.label=none")
    if not named:
        return class_names(others)
    return (*named, *sorted(str(label) for label in others - {None} - named.keys()))


def _labels(path: Path, column: str) -> Iterator[Label]:
    """The labels of a file, row by row."""
    for number, value in enumerate(_values(path, column)):
        yield label_of(value, f"{path.name}: row {number}", digits=True)


def _values(path: Path, column: str) -> Iterator[Any]:
    """The values of a column, row by row. Raises DatasetError."""
    with _reading(path):
        for batch in _batches(path, [column]):
            yield from batch.column(column).to_pylist()


def columnar_below(root: Path) -> list[Path]:
    """The files of one kind one or two levels below a folder: in a clone from Hugging Face's hub
    (`data/train-*.parquet`), or as `datasets` saves them (`train/*.arrow`)."""
    for suffix in COLUMNAR:
        paths = sorted(path for depth in ("*", "*/*") for path in root.glob(f"{depth}/*{suffix}") if holds_rows(path))
        if visible := [path for path in paths if not any(map(is_hidden, path.relative_to(root).parts))]:
            return visible
    return []


def samples(path: str, choice: Choice = NOT_CHOSEN, classes: tuple[str, ...] = ()) -> Iterator[Sample]:
    """All rows of one file, in order. classes: the names of the labels that are given to them. Raises DatasetError.

    For a row without bytes the file that it names is read (ABSENT if that does not exist); without either, it is b''.
    """
    name, number = Path(path), 0
    folders = [name.parent, *([Path(choice.images_in)] if choice.images_in else [])]
    image, label, names, _ = _columns(name, choice)
    number_of = numbering(classes)
    with _reading(name):
        for batch in _batches(name, [image, *([label] if label else [])]):
            images, labels = batch.column(image), batch.column(label) if label else None
            for row in range(len(images)):
                where = f"{name.name}: row {number}"
                value = None if labels is None else label_of(labels[row].as_py(), where, digits=True)
                if names and value is not None:
                    value = _name_of(int(value), names, where)
                for file, data in _files(images[row].as_py(), folders):
                    yield Sample(file or f"{name.stem}-{number:08d}", data, number_of(value))
                number += 1


def _files(cell: Any, folders: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Name ('' if it has none) and bytes of each image of a cell; of an empty list as of a cell without an image."""
    files: list[tuple[str, bytes]] = []
    for image in (cell or [None]) if isinstance(cell, list) else [cell]:
        held: dict[str, Any] = {"bytes": image} if isinstance(image, bytes) else image or {}
        path = held.get("path") or ""
        data = held.get("bytes") or _read_named(folders, path)
        files.append((os.path.splitext(os.path.basename(path))[0], data))
    return files


def _name_of(number: int, names: Sequence[str], where: str) -> str:
    if number >= len(names):
        problem = f"{where}: label {number} of only {len(names)} class names"
        raise DatasetError(f"{problem}; leave the labels out with data.label=none")
    return names[number]


def _read_named(folders: Sequence[Path], path: str | None) -> bytes:
    """The image file that a row without bytes names; only below one of `folders`, since the row is not trusted."""
    if not path:
        return b""
    for folder in folders:
        file = (folder / path).resolve()
        if any(file.is_relative_to(allowed.resolve()) for allowed in folders) and file.is_file():
            return file.read_bytes()
    return ABSENT


def _spooled_bytes(path: Path, image: str) -> int:
    """Estimated bytes of the images of a file in a tar. Raises DatasetError."""
    from pyarrow import parquet

    with _reading(path):
        if path.is_dir():
            rows = _lance(path).count_rows()
            return sum(file.stat().st_size for file in _files_of_lance(path)) + TAR_BYTES * rows
        if path.suffix.lower() != ".parquet":
            return path.stat().st_size + TAR_BYTES * sum(batch.num_rows for batch in _batches(path, []))
        metadata = parquet.read_metadata(path)
        groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
        columns = (group.column(index) for group in groups for index in range(group.num_columns))
        of_images = (column for column in columns if column.path_in_schema.partition(".")[0] == image)
        return sum(column.total_uncompressed_size for column in of_images) + TAR_BYTES * metadata.num_rows


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Record batches of a file, with these columns (Arrow files: all columns)."""
    import pyarrow
    from pyarrow import ipc, parquet

    if path.is_dir():
        yield from _lance(path).to_batches(columns=columns, batch_size=ROWS)
        return
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

    with _reading(path):
        if path.is_dir():
            return _lance(path).schema
        if path.suffix.lower() == ".parquet":
            return parquet.read_schema(path)
        with pyarrow.memory_map(str(path)) as memory:
            try:
                return ipc.open_file(memory).schema
            except pyarrow.ArrowInvalid:
                memory.seek(0)
                return ipc.open_stream(memory).schema


def _lance(folder: Path) -> Any:
    """The newest version of a Lance dataset. Raises DatasetError without the package."""
    try:
        import lance
    except ImportError:
        advice = ".venv/bin/python -m pip install pylance"
        raise DatasetError(f"{folder.name}: Lance needs the package pylance; install it: {advice}") from None
    return lance.dataset(str(folder))


def _files_of_lance(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _kind(path: Path) -> str:
    return "lance" if path.is_dir() else SUFFIXES[path.suffix.lower()]


def _columns(path: Path, choice: Choice) -> Columns:
    """The columns to read, as `pipeline.dataset.finding.choice` says."""
    with _reading(path):
        schema, name = _schema(path), path.name
        features = _features(schema)
        images = [field.name for field in schema if _is_image(field.type)]
        images = images or [field.name for field in schema if _is_binary(field.type) and _shows_image(path, field.name)]
        if not images:
            problem = f"{name}: no column of images (struct with 'bytes') among {', '.join(schema.names)}"
            raise DatasetError(f"{problem}; give a dataset with an Image feature")
        able = [field.name for field in schema if _can_label(field.type) and field.name not in images]
        unable = [column for column in schema.names if column.lower() in LABELS and column not in able + images]
        label = chosen_label(able, choice, [column for column in able if features.get(column)])
        if unable and not label and choice.label is None:
            problem = f"{name}: the column {unable[0]} holds {schema.field(unable[0]).type}, which is no class"
            raise DatasetError(f"{problem}; choose another with data.label, or data.label=none")
        return Columns(chosen_image(images, choice), label, features.get(label, ()), tuple(able))


def _is_image(kind: Any) -> bool:
    """Whether a column of this type holds images: structs with `bytes`, or lists of them."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return types.is_struct(kind) and any(child.name == "bytes" for child in kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _shows_image(path: Path, column: str) -> bool:
    """Whether the first value of a column of bytes begins like an image; rows that failed have none."""
    with _reading(path):
        values = (value for batch in _batches(path, [column]) for value in batch.column(column).drop_null())
        value = next(values, None)
    return value is not None and looks_like_image("", value.as_py()[:HEAD])


def _can_label(kind: Any) -> bool:
    """Whether a column of this type can hold labels: whole numbers, floats, text, or categories of these."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    checks = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(check(kind) for check in (*checks, types.is_string_view, types.is_binary, types.is_large_binary))


def _features(schema: Any) -> dict[str, tuple[str, ...]]:
    """Class names by column, from the metadata of Hugging Face's `datasets`."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        named = {column: feature.get("names") for column, feature in features.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {column: tuple(map(str, names)) for column, names in named.items() if isinstance(names, list)}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What pyarrow raises for a damaged file within the block becomes a DatasetError."""
    import pyarrow

    try:
        yield
    except DatasetError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, RuntimeError) as error:  # Lance raises the last two
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DatasetError:
    why = " ".join(str(error).split())[:200]
    return DatasetError(f"{path.name}: damaged {_kind(path)} file ({why}); copy it again")
