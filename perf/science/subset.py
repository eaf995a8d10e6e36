"""Packs parts of a labelled dataset: one on which a short run can time whole epochs, and the split of a search."""

from __future__ import annotations

import hashlib
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


def pack_for_search(data: Labelled, out: Path) -> None:
    """Pack a split of the training images alone into `out`/train and `out`/test, unless it is there already.

    About a fifth is its test. Images with the same folder in their key are near-duplicates and stay on one side.
    """
    groups = [group_of(data.train.name(row)) for row in data.train_rows]
    drawn = {group: hashlib.sha256(f"search {group}".encode()).digest()[0] % 5 == 0 for group in groups}
    tested = np.array([drawn[group] for group in groups])
    for name, rows in (("train", data.train_rows[~tested]), ("test", data.train_rows[tested])):
        if not (out / name / "table.npz").exists():
            pack(records(data.train, rows), out / name, name, data.train.classes)


def group_of(name: str) -> str:
    """`train-000000.tar:00012/0031-cat.png` -> `00012`; without a folder the name itself."""
    return name.rpartition(":")[2].rpartition("/")[0] or name


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
