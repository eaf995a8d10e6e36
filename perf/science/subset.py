"""Packs a part of a labelled dataset, on which a short run can time whole epochs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.dataset.labelled import Labelled
from pipeline.dataset.reader import Reader
from pipeline.dataset.shards import Record, pack
from pipeline.dataset.table import SampleTable


def pack_part(data: Labelled, train: int, test: int, out: Path) -> None:
    """Pack `train` and `test` evenly spread rows into `out`/train and `out`/test, unless they are there already."""
    for name, table, rows, count in (
        ("train", data.train, data.train_rows, train), ("test", data.test, data.test_rows, test)
    ):  # fmt: skip
        if not (out / name / "table.npz").exists():
            chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
            pack(records(table, chosen), out / name, name, table.classes)


def records(table: SampleTable, rows: np.ndarray) -> Iterator[Record]:
    """The unchanged bytes of these rows, with their labels."""
    reader = Reader(table)
    try:
        for number, row in enumerate(rows):
            (data,) = reader.read([row])
            suffix = "png" if data[:4].tobytes() == b"\x89PNG" else "jpg"
            yield Record(f"{number:06d}", data.tobytes(), suffix, int(table.label[row]))
    finally:
        reader.close()
