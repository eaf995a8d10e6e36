"""k-NN of raw pixels, which searches gray images in a third of their columns."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from evaluation.classifiers import knn
from pipeline.batch import Batch
from pipeline.crops import Crops, View
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.table import SampleTable

COUNT, TESTED = 60, 20
CONFIG = OmegaConf.create(
    {
        "evaluation": {"size": 4, "share": 1.0, "batch_size": 7, "k": 5, "temperature": 0.1},
        "pipeline": {"backend": "torchvision", "threads": 1, "device": "cpu", "hw_decoder_load": 0.65},
        "data": {"max_bad_fraction": 0.0},
    }
)


def images_of(kind):
    noise = np.random.default_rng(3)
    images, gray = noise.random((COUNT, 3, 4, 4)), noise.random((COUNT, 1, 4, 4)).repeat(3, 1)
    if kind == "gray":
        return gray
    if kind == "gray, tested on colors":
        return np.concatenate([gray[:-TESTED], images[-TESTED:]])
    return images if kind == "colors" else noise.random((COUNT, 5, 4, 4))


@pytest.mark.parametrize("kind", ["gray", "colors", "gray, tested on colors", "five channels"])
def test_neighbors_are_those_of_the_flat_pixels(kind, monkeypatch):
    images, labels = images_of(kind), np.arange(COUNT) % 4
    searched = []

    def batches(table, rows, crops, *, batch_size, **_):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield Batch([torch.from_numpy(images[part]).float() / 0.5 - 1], part)

    def predict(bank, bank_labels, queries, k, temperature):
        searched.append(bank.shape[1])
        near = (queries @ bank.T).argsort(1, descending=True)[:, :k]
        np.testing.assert_array_equal(near, expected[:, :k])
        return bank_labels[near[:, 0]]

    flat = images.reshape(COUNT, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    expected = (-flat[-TESTED:] @ flat[:-TESTED].T).argsort(1)
    monkeypatch.setattr(knn, "evaluation_batches", batches)
    monkeypatch.setattr(knn, "predict", predict)
    zeros, sizes = np.zeros(COUNT), np.full(COUNT, 8)
    table = SampleTable("/", ["a"], zeros, zeros, sizes, sizes, sizes, labels, zeros)
    data = Labelled(table, np.arange(COUNT - TESTED), table, np.arange(COUNT - TESTED, COUNT))
    channels = images.shape[1]
    crops = Crops((View(4, (1.0, 1.0)),), mean=(0.5,) * channels, std=(0.5,) * channels)
    accuracy = knn.pixel_knn(data, crops, CONFIG, torch.device("cpu"))
    assert searched == [16 if kind.startswith("gray") else 16 * channels]
    assert accuracy == np.mean(labels[expected[:, 0]] == labels[-TESTED:])
