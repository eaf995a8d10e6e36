"""Lists a chunk of LitData; its columns are in the index.json of its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.records.chunks import ARRAY, BYTES, IMAGE, NUMPY, PIL, TENSOR, TEXT, Column, list_items
from pipeline.dataset.records.listing import Records, Window, opened
from pipeline.dataset.records.litdata_rows import has_rows, list_rows
from pipeline.dataset.table import DatasetError

# By the name up to a colon ('image:png', 'no_header_tensor:11').
KINDS = {
    "jpeg": IMAGE, "image": IMAGE, "file": BYTES, "bytes": BYTES, "pil": PIL, "jpeg_array": ARRAY, "tensor": TENSOR,
    "numpy": NUMPY, "no_header_tensor": BYTES, "no_header_numpy": BYTES, "str": TEXT, "text": TEXT, "int": "<i8",
    "float": "<f8", "bool": "|b1",
}  # fmt: skip


def list_litdata(path: str, choice: Choice) -> Records:
    """The images of a chunk. Raises DatasetError if it is compressed, encrypted, damaged or has no images."""
    index = os.path.join(os.path.dirname(path), "index.json")
    columns, pair = _columns(index, os.stat(index).st_mtime_ns)
    with opened(path) as descriptor:
        window, name = Window(descriptor), os.path.basename(path)
        if has_rows(window):
            return list_rows(window, name, choice)
        return list_items(window, name, columns, choice, pair)


@lru_cache(16)
def _columns(index: str, changed: int) -> tuple[list[Column], bool]:
    """The columns that an index.json states, and whether they are a tuple or list of two."""
    try:
        with open(index, encoding="utf-8") as file:
            config = json.load(file)["config"]
        spec = json.loads(config["data_spec"])[1]
        names = [".".join(part) for part in _leaves(spec, ())]
        kinds = [str(kind) for kind in config["data_format"]]
        columns = [Column(name, KINDS.get(kind.partition(":")[0], ""), None, kind) for name, kind in
                   zip(names, kinds, strict=True)]  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DatasetError("index.json: its config has no data_format and data_spec; copy it again") from None
    packed = config.get("compression") or config.get("ipc_compression")
    if packed or config.get("encryption"):
        problem = f"its chunks are {f'compressed ({packed})' if packed else 'encrypted'}"
        raise DatasetError(f"index.json: {problem}, so that images have no byte range; write them without, by litdata")
    if str(config.get("item_loader") or "PyTreeLoader") != "PyTreeLoader":
        raise DatasetError(f"index.json: made for {config['item_loader']}, not for images; give a dataset of images")
    return columns, len(columns) == 2 and spec["type"] in ("builtins.tuple", "builtins.list")


def _leaves(spec: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The names of the values of an item, in the order in which they are stored: keys and positions."""
    if spec["type"] is None:
        yield above
        return
    keys = json.loads(spec["context"]) if spec["type"].endswith("ict") else None
    for position, child in enumerate(spec["children_spec"]):
        yield from _leaves(child, (*above, str(keys[position] if keys else position)))
