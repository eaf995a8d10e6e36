"""One table of several: their rows one after the other, and their classes by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dataset.channels.settle import AUTO
from pipeline.dataset.table import COLUMNS, DECODE, DatasetError, SampleTable
from pipeline.mixing.splits import shared_file
from pipeline.remote.probes import mirror_without_images


def joint_table(tables: Sequence[SampleTable], paths: Sequence[str]) -> SampleTable:
    """The table of all rows of `tables`, in this order, with `sources`: each one's path and number of rows.

    Labels become those of all classes by name. Raises DatasetError where the tables do not go together.
    """
    for table, path in zip(tables, paths, strict=True):
        if table.pixels.kind != tables[0].pixels.kind:
            problem = f"holds images of {table.pixels}, and {paths[0]} of {tables[0].pixels}"
            raise DatasetError(f"data.path={path}: {problem}; give paths of one kind, or data.channels for all")
        if _samples(table) != _samples(tables[0]):
            problem = f"its arrays are not stored as those of {paths[0]}: files go with shards, a .beton with a .beton"
            raise DatasetError(f"data.path={path}: {problem}; convert one of the two")
        if mirror_without_images(table.root) is not None:
            problem = "its images are fetched one by one, which several paths cannot be"
            raise DatasetError(
                f"data.path={path}: {problem}; raise data.cache_bytes, so that they all are on this machine"
            )
        if _bands(table) != _bands(tables[0]):
            problem = f"its images are {_bands(table)} files each, those of {paths[0]} {_bands(tables[0])}"
            raise DatasetError(f"data.path={path}: {problem}; give paths of one kind")
        if _labelled(table) and _labelled(tables[0]) and bool(table.classes) != bool(tables[0].classes):
            problem = f"only one of it and {paths[0]} has names of classes"
            raise DatasetError(f"data.path={path}: {problem}; store both in the same way, or set data.label=none")
    for place, path in enumerate(paths):
        for table, other in zip(tables[:place], paths[:place], strict=True):
            if shared := shared_file(table, tables[place]):
                problem = f"{shared} is in {other} too"
                raise DatasetError(f"data.path={path}: {problem}; give each image once, data.weights says how often")
    classes = tuple(dict.fromkeys(name for table in tables for name in table.classes))
    number = {name: index for index, name in enumerate(classes)}
    firsts = np.cumsum([0, *(len(table.containers) for table in tables)])
    columns: dict[str, Any] = {name: [getattr(table, name) for table in tables] for name in COLUMNS}
    columns["container"] = [part + first for part, first in zip(columns["container"], firsts, strict=False)]
    if classes:
        numbers = [np.array([*(number[name] for name in table.classes), -1]) for table in tables]
        columns["label"] = [of[part] for of, part in zip(numbers, columns["label"], strict=True)]
    columns = {name: np.concatenate(parts) for name, parts in columns.items()}
    shifts = [np.array([first, 0, 0]) for first in firsts]
    bands = [table.bands + shift for table, shift in zip(tables, shifts, strict=False) if table.bands is not None]
    rows = np.cumsum([0, *(len(table) for table in tables)]).tolist()
    pixels, layouts = tables[0].pixels, {table.pixels.layout for table in tables}
    counted = [table.left_out for table in tables]
    left_out = None if None in counted else dict(sum((Counter(one) for one in counted), Counter[str]()))
    return replace(
        tables[0],
        root=Path("/"),
        pixels=pixels if len(layouts) == 1 else replace(pixels, layout=AUTO),
        containers=[os.path.join(table.root.resolve(), name) for table in tables for name in table.containers],
        **columns,
        classes=classes,
        quarantine={
            row + first: why
            for table, first in zip(tables, rows, strict=False)
            for row, why in table.quarantine.items()
        },
        bands=np.concatenate(bands) if bands else None,
        fingerprint="",
        others="",
        left_out=left_out,
        check=next((table.check for table in tables if table.check != DECODE), DECODE),
        sources=tuple((str(path), len(table)) for path, table in zip(paths, tables, strict=True)),
    )


def _samples(table: SampleTable) -> tuple[str, str]:
    """Type and layout of bare samples; of files the same for all, as their sizes tell the layout."""
    return table.pixels.stored, table.pixels.layout if table.pixels.stored else ""


def _bands(table: SampleTable) -> int:
    """The number of files of an image."""
    return 1 if table.bands is None else 1 + table.bands.shape[1]


def _labelled(table: SampleTable) -> bool:
    return bool((table.label >= 0).any())
