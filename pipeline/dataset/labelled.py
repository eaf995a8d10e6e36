"""The labelled images of a dataset: those to learn from, and those to score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.dataset.table import SampleTable

HELD_OUT = 10  # one in ten rows is the test where a dataset has no test split of its own


@dataclass(frozen=True)
class Labelled:
    """Labelled images to compare with (`train`) and to score (`test`): a table and rows of it each."""

    train: SampleTable
    train_rows: np.ndarray
    test: SampleTable
    test_rows: np.ndarray


def labelled_data(train: SampleTable, test: SampleTable | None, max_train: int = 0) -> Labelled | None:
    """The labelled rows of both tables; without a test table a tenth of the labels is held out. None without labels."""
    rows = train.usable()
    rows = rows[train.label[rows] >= 0]
    if test is None:
        held_out = rows * 2_654_435_761 % 2**32 % HELD_OUT == 0
        test, test_rows, rows = train, rows[held_out], rows[~held_out]
    else:
        test_rows = test.usable()
        test_rows = test_rows[test.label[test_rows] >= 0]
    if max_train:
        rows = rows[:: max(1, len(rows) // max_train)]
    if not len(rows) or not len(test_rows):
        return None
    return Labelled(train, rows, test, test_rows)
