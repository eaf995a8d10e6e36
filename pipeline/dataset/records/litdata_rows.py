"""Lists a LitData chunk whose items are rows of Arrow, as litdata 0.2.76 writes dicts of bytes, text and numbers.

The number of items and offsets without items, as in other chunks; a file of Arrow IPC; its length (uint32); MAGIC. The
bytes of a cell lie in one piece in the file, so that images are read in place.
Source: the writer of litdata 0.2.76; arrow.apache.org/docs/format/Columnar.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from common.holes import pread
from pipeline.dataset.finding.choice import Choice, chosen_image
from pipeline.dataset.finding.labels import label_of
from pipeline.dataset.records.chunks import LOOKED_AT, column_of_labels
from pipeline.dataset.records.listing import Records, Window
from pipeline.dataset.table import DatasetError

MAGIC = b"LDARW01\0"


def has_rows(window: Window) -> bool:
    """Whether a chunk ends with rows of Arrow."""
    return window.read(max(0, window.size - len(MAGIC)), len(MAGIC)) == MAGIC


def list_rows(window: Window, name: str, choice: Choice) -> Records:
    """The images of such a chunk. Raises DatasetError if it is damaged or has no images."""
    import pyarrow

    try:
        return _listed(window, name, choice)
    except DatasetError:  # which is a ValueError
        raise
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        raise DatasetError(f"{name}: damaged, its rows cannot be read; copy it again") from None


def _listed(window: Window, name: str, choice: Choice) -> Records:
    records, image, label, number = Records(), "", "", 0
    for columns, place in _batches(window, name):
        ranges = {column: place(array) for column, array in columns.items() if _is_binary(array.type)}
        if not number:
            found = [column for column, places in ranges.items() if _show_images(window, places)]
            if not found:
                held = ", ".join(f"{column}: {array.type}" for column, array in columns.items())
                raise DatasetError(f"{name}: no column holds images ({held}); give a dataset with one")
            image = chosen_image(sorted(found), choice)
            others = {column: str(array.type) for column, array in columns.items() if column not in found}
            able = [column for column in others if _can_label(columns[column].type)]
            label = column_of_labels(name, others, able, choice)
        labels = columns[label].to_pylist() if label else [None] * len(ranges[image])
        for (start, length), value in zip(ranges[image], labels, strict=True):
            if length:
                key = f"{name.partition('.')[0]}-{number:06d}"
                records.add(start, length, key, label_of(value, name))
            else:
                records.left_out["record without an image"] += 1
            number += 1
    return records


def _batches(window: Window, name: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """The columns of each batch of rows, those of a dict in a dict as `outer.inner`; and a function from a column of
    bytes to the offset in the file and the length of each value."""
    import pyarrow

    (length,) = struct.unpack("<I", window.read(window.size - 12, 4))
    start = window.size - 12 - length
    if start < 0:
        raise ValueError(f"{length} bytes of rows")
    body = pyarrow.py_buffer(pread(window.descriptor, length, start))

    def place(array: Any) -> list[tuple[int, int]]:
        _, offsets, data = array.buffers()
        width = np.int64 if pyarrow.types.is_large_binary(array.type) else np.int32
        ends = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
        shift = data.address - body.address if data and len(data) else 0
        if not 0 <= shift <= length:
            raise DatasetError(f"{name}: its rows are compressed, so that images have no byte range; write it without")
        return list(zip((start + shift + ends[:-1]).tolist(), np.diff(ends).tolist(), strict=True))

    reader = pyarrow.ipc.open_file(body)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate(full=True)
        table = pyarrow.Table.from_batches([batch])
        while any(pyarrow.types.is_struct(field.type) for field in table.schema):
            table = table.flatten()
        yield {column: table.column(column).chunk(0) for column in table.column_names}, place


def _show_images(window: Window, places: list[tuple[int, int]]) -> bool:
    return any(length and window.shows_image(start, length) for start, length in places[:LOOKED_AT])


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _can_label(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_string(kind))
