"""Evaluations of a checkpoint after a few training steps on a part of Fashion-MNIST."""

import json

import numpy as np
import pytest
from pyarrow import parquet

from config.recipe import ROOT
from evaluation.subsets import take
from pipeline.dataset.table import DatasetError
from pipeline.fashion_mnist import CLASSES, prepare
from support.evaluations import evaluate
from support.forks import Script

pytestmark = pytest.mark.slow
TRAIN, TEST = 640, 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's directory: ten steps with the demo's network. The tables of its images are next to it."""
    root = tmp_path_factory.mktemp("fashion")
    try:
        tables = prepare(ROOT / "data/fashion-mnist", progress=False)
    except DatasetError as error:
        pytest.skip(f"Fashion-MNIST is neither in data/ nor to be fetched: {error}")
    for (split, table), count in zip(tables.items(), (TRAIN, TEST), strict=True):
        take(table, np.arange(count)).save(root / f"{split}.npz")
    settings = ["run.epochs=1", "run.batch_size=64", "swav.freeze_prototypes=2", "optimizer.warmup_epochs=0"]
    places = [f"data.path={root}/train.npz", f"data.test={root}/test.npz", f"run.directory={root}/run"]
    process = Script(ROOT / "train.py", ["config/demo.yaml", *settings, *places], root / "output")
    assert process.wait(timeout=300) == 0, process.output.read_text()
    return root / "run"


@pytest.fixture
def figures(trained, tmp_path, capsys):
    """figures(command, *words): the result of evaluate.py COMMAND on the run and its own images."""

    def of(command, *words):
        places = ["--cache", trained.parent / "features", "--json", tmp_path / "r.json"]
        output = evaluate(capsys, trained, *words, *places, command=command)
        assert output["data"]["path"] == str(trained.parent / "train.npz")
        return output

    return of


def test_knn_is_the_one_that_training_ended_with(trained, figures):
    output = figures("knn", "--k", "1,20", "--peers", "random")
    assert (output["data"]["train_images"], output["data"]["test_images"], output["data"]["classes"]) == (
        TRAIN,
        TEST,
        10,
    )
    summary = json.loads((trained / "summary.json").read_text())
    assert output["results"][0]["k-NN top1"]["k=20"] == summary["knn"]
    assert output["results"][1]["weights"] != output["results"][0]["weights"]


def test_the_first_image_retrieved_is_the_nearest_neighbor(figures):
    nearest = figures("knn", "--k", "1")["results"][0]["k-NN top1"]["k=1"]
    result = figures("retrieval", "--k", "1,10")["results"][0]
    assert result["recall"]["at 1"] == result["precision"]["at 1"] == pytest.approx(nearest)
    assert result["recall"]["at 10"] > nearest > result["mAP at R"] > 0.1  # a guess is a tenth


def test_a_linear_classifier_learns_more_than_a_guess(figures):
    (result,) = figures("linear", "--cached")["results"]
    assert 0.3 < result["linear top1"] < 1


def test_the_clusters_are_of_all_training_images(figures, trained, tmp_path):
    (result,) = figures("clusters", "--sheets", 1, "--out", tmp_path / "out")["results"]
    table = parquet.read_table(tmp_path / "out/clusters.parquet").to_pydict()
    assert len(table["name"]) == TRAIN and set(table["class"]) == set(CLASSES)
    assert result["in use"] == len(set(table["prototype"])) > 3
    assert result["prototypes"] == 128 and 0.1 < result["purity"] < 1
    assert len(list((tmp_path / "out").glob("cluster-*.png"))) == 1


def test_a_runs_test_images_are_used_only_with_the_runs_own_data(figures, trained, tmp_path, capsys):
    words = [trained, trained.parent / "train.npz", "--k", 1, "--cache", "none", "--json", tmp_path / "other.json"]
    other = evaluate(capsys, *words, command="knn")  # DATA is given: a tenth of it is held out
    assert other["data"]["test_images"] != TEST
    assert other["data"]["train_images"] + other["data"]["test_images"] == TRAIN
    assert figures("knn", "--k", 1)["data"]["test_images"] == TEST
