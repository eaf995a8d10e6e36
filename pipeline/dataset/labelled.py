"""The labelled images of a dataset: those to learn from, and those to score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from pipeline.dataset.columns import blocks
from pipeline.dataset.table import SampleTable, State, row_dtype

HELD_OUT = 10  # one in ten rows is the test where a dataset has no test split of its own


@dataclass(frozen=True)
class Labelled:
    """Labelled images to compare with (`train`) and to score (`test`): a table and rows of it each.

    Labels in a table may be any numbers from 0 on, such as ids. A classifier has an output for each class that occurs.
    """

    train: SampleTable
    train_rows: np.ndarray
    test: SampleTable
    test_rows: np.ndarray

    @cached_property
    def classes(self) -> Int[np.ndarray, " classes"]:
        """The labels that occur in either table, ascending."""
        both = np.empty(0, np.int32)
        for table in (self.train, self.test):
            for part in blocks(len(table)):
                both = np.union1d(both, table.label[part])
        return both[both >= 0]

    def numbers(self, label: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """The place of each label in `classes`, int64; -1, for no label, stays -1."""
        return np.where(label < 0, -1, np.searchsorted(self.classes, label))

    @property
    def train_labels(self) -> Int[np.ndarray, " rows"]:
        """`numbers` of the training rows."""
        return self.numbers(self.train.label[self.train_rows])

    @property
    def test_labels(self) -> Int[np.ndarray, " rows"]:
        """`numbers` of the test rows."""
        return self.numbers(self.test.label[self.test_rows])

    @cached_property
    def unseen(self) -> int:
        """Number of test rows of a class that no training row has."""
        return int(np.isin(self.test_labels, np.unique(self.train_labels), invert=True).sum())


def labelled_data(train: SampleTable, test: SampleTable | None, max_train: int = 0) -> Labelled | None:
    """The labelled rows of both tables; without a test table about a tenth of them is held out, at least one. None if
    there is no labelled row to compare with or none to score.

    max_train: at most so many training rows, evenly spread; 0: all.
    """
    rows = labelled_rows(train)
    if test is None:
        held_out = np.concatenate([_held_out(rows[part]) for part in blocks(len(rows))] or [np.empty(0, bool)])
        if held_out.all() or not held_out.any():  # of few rows
            held_out = np.arange(len(rows)) == 0
        test, test_rows, rows = train, rows[held_out], rows[~held_out]
    else:
        test_rows = labelled_rows(test)
    if max_train:
        rows = rows[:: max(1, -(-len(rows) // max_train))]
    if not len(rows) or not len(test_rows):
        return None
    return Labelled(train, rows.astype(np.int64), test, test_rows.astype(np.int64))


def labelled_rows(table: SampleTable) -> Int[np.ndarray, " rows"]:
    """Usable rows with a label, ascending."""
    parts = []
    for part in blocks(len(table)):
        labelled = (table.state[part] != State.QUARANTINED) & (table.label[part] >= 0)
        parts.append((np.flatnonzero(labelled) + part.start).astype(row_dtype(table)))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _held_out(rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Whether a row is one of about a tenth that are the test."""
    return rows.astype(np.int64) * 2_654_435_761 % 2**32 % HELD_OUT == 0
