"""A sample table of any number of rows without images, like that of ImageNet's folder, written without holding it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.columns import blocks
from pipeline.dataset.table import COLUMNS, Names, SampleTable

CLASSES = 1000
NAME = "n00000000/n00000000_00000000.JPEG"
CLASS_AT, AGAIN_AT, NUMBER_AT = 1, 11, 20  # where the numbers of eight digits are


def write_table(path: Path, rows: int) -> None:
    """Write a table of `rows` images of 500 x 375 pixels and about 100 kB in 1,000 classes to `path` (.npz).

    Columns are made in files in the same folder, so that they take no memory of their own.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        columns: dict[str, Any] = {name: _column(Path(folder) / name, rows, dtype) for name, dtype in COLUMNS.items()}
        names = _column(Path(folder) / "names", rows * (len(NAME) + 1), np.uint8)
        ends = _column(Path(folder) / "ends", rows, np.int64)
        for part in blocks(rows):
            index = np.arange(part.start, part.stop)
            columns["container"][part] = index
            columns["length"][part] = 60_000 + index * 7919 % 80_000
            columns["width"][part], columns["height"][part] = 500, 375
            columns["label"][part] = index * CLASSES // rows
            width = len(NAME) + 1
            names[part.start * width : part.stop * width] = _names(index, columns["label"][part]).reshape(-1)
            ends[part] = (index + 1) * width - 1
        SampleTable(
            root=Path("/nowhere"), containers=Names(names.data.toreadonly(), ends),
            classes=tuple(f"n{number:08d}" for number in range(CLASSES)), **columns,
        ).save(path)  # fmt: skip


def _column(file: Path, rows: int, dtype: type) -> NDArray:
    return np.memmap(file, dtype, "w+", shape=(rows,))


def _names(index: NDArray[np.int64], label: NDArray[np.int32]) -> NDArray[np.uint8]:
    """(rows, len(NAME) + 1) uint8: file names, each ended by a zero byte."""
    names = np.tile(np.frombuffer(NAME.encode() + b"\0", np.uint8), (len(index), 1))
    for at, numbers in ((CLASS_AT, label), (AGAIN_AT, label), (NUMBER_AT, index)):
        for digit in range(8):
            names[:, at + 7 - digit] += (numbers // 10**digit % 10).astype(np.uint8)
    return names
