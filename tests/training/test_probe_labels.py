"""Which labels the online probe learns from."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.labelled import labelled_data
from pipeline.dataset.table import SampleTable
from training.build import probe_of


def table(labels):
    """A table with these labels; its other columns do not matter."""
    rows, zeros = len(labels), np.zeros(len(labels))
    size = np.full(rows, 8)
    return SampleTable(Path("."), ["a"], zeros, zeros, size, size, size, labels, zeros)


def test_it_does_not_learn_from_held_out_test_images():
    images = table(np.arange(100) % 4)
    labelled = labelled_data(images, None)
    probe = probe_of(labelled, images, 5)
    assert (probe.labels[labelled.test_rows] == -1).all()
    assert (probe.labels[labelled.train_rows] >= 0).all()
    assert probe.state["weight"].shape == (4, 6)
    whole = labelled_data(images, table(np.full(10, 6)), max_train=20)
    probe = probe_of(whole, images, 5)
    assert (probe.labels >= 0).all()  # max_train limits k-NN only
    assert probe.state["weight"].shape == (5, 6)  # classes that only the test set has count too


def test_data_without_labels_is_an_error_of_one_line():
    images = table(np.full(10, -1))
    with pytest.raises(ValueError, match=r"^evaluation.probe=true needs labels to learn and to score; .*$"):
        probe_of(labelled_data(images, None), images, 5)
