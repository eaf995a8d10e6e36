"""Lists an MDS shard of mosaicml-streaming; its columns are in a JSON inside it."""

from __future__ import annotations

import json
import os

from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.records.chunks import (
    ARRAY,
    BYTES,
    IMAGE,
    LIST,
    PIL,
    PIL_LIST,
    TEXT,
    Column,
    list_items,
    offsets_of,
)  # fmt: skip
from pipeline.dataset.records.listing import Records, Window, is_packed, opened
from pipeline.dataset.table import DatasetError

KINDS = {
    "jpeg": IMAGE, "png": IMAGE, "bytes": BYTES, "pil": PIL, "jpeg_array": ARRAY, "jpegarray": ARRAY,
    "list[jpeg]": LIST, "list[png]": LIST, "list[pil]": PIL_LIST, "str": TEXT, "str_int": TEXT, "int": "<i8",
    "uint8": "|u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "int8": "|i1", "int16": "<i2", "int32": "<i4",
    "int64": "<i8", "float16": "<f2", "float32": "<f4", "float64": "<f8",
}  # fmt: skip


def list_mds(path: str, choice: Choice) -> Records:
    """The images of a shard, compressed or not. Raises DatasetError if it is damaged or has no images."""
    name = os.path.basename(path)
    with opened(path) as descriptor:
        window = Window(descriptor)
        records = list_items(window, name, _columns(window, name), choice)
    records.packed = is_packed(path)
    return records


def _columns(window: Window, name: str) -> list[Column]:
    offsets = offsets_of(window, name)
    start = 4 + 4 * len(offsets)
    try:
        said = json.loads(window.read(start, offsets[0] - start))
        parts = zip(said["column_names"], said["column_encodings"], said["column_sizes"], strict=True)
        return [
            Column(str(column), KINDS.get(kind, ""), None if size is None else int(size), str(kind))
            for column, kind, size in parts
        ]
    except (ValueError, LookupError, TypeError):
        raise DatasetError(f"{name}: no MDS shard, or damaged at its beginning; copy it again") from None
