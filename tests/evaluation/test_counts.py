"""Counts of 0, 1, 2 and processes - 1 in every sub-command: right, or one line before anything starts."""

import json
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from config.recipe import ROOT
from evaluation.classifiers.knn import knn_accuracy
from evaluation.classifiers.logistic import best_regression, chosen_penalty
from evaluation.report.pictures import neighbor_plane
from pipeline.crops import Crops, View
from pipeline.dataset.labelled import labelled_data
from pipeline.dataset.open import open_splits
from pipeline.dataset.table import SampleTable
from support.evaluations import evaluate, images_of_three_classes, mistake
from support.forks import Script
from support.ranks import run_ranks

COMMANDS = {
    "knn": ["--k", "1,2,20"],
    "linear": ["--epochs", 1],
    "linear --bn": ["--epochs", 1, "--bn"],
    "linear --cached": ["--cached"],
    "semisup": ["--fraction", 1, "--lr", 0.05, "--head-lr", 0.5, "--epochs", 1],
    "transfer": [],
    "transfer --finetune": ["--finetune", "--epochs", 1],
    "svm": ["--costs", "1"],
    "retrieval": ["--k", "1,5"],
    "clusters": ["--out", "{}/clusters"],
    "report": ["--out", "{}/report.html", "--projection", "tsne"],
}
TRAINS = {"linear": 1, "linear --bn": 2, "semisup": 2, "transfer --finetune": 2}  # least images of each process
NO_LABELS, NO_CLASS = "no labeled image is left to train on", "no class has training images, others beside them"


def expected_mistake(command, train, processes=1):
    """What the one line says for so many training images, of three classes in turn; None: it works."""
    if command == "clusters":
        return None
    if not train:
        return NO_LABELS
    if train < TRAINS.get(command, 0) * processes:
        return f"{train} labeled training images; training on {processes} process"
    return NO_CLASS if command == "svm" and train < 2 else None


def write(root, train, test):
    """Images in folders by class. Without training images there is one without a class."""
    if train:
        images_of_three_classes(root / "train", train, 0)
    else:
        images_of_three_classes(root / "flat" / "train", 1, 0)
        (root / "flat" / "train" / "class0").rename(root / "train")
    images_of_three_classes(root / "val", test, 1)
    return root / "train", ["--test", root / "val"]


def finite(node):
    if isinstance(node, dict | list):
        return all(finite(each) for each in (node.values() if isinstance(node, dict) else node))
    return not isinstance(node, float) or math.isfinite(node)


def words_of(command, folder):
    places = ["--tables", folder / "tables", "--cache", folder / "cache", "--backend", "torchvision", "--threads", 1]
    return [str(option).format(folder) for option in COMMANDS[command]] + places


@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize("command", COMMANDS)
def test_few_images_are_right_or_one_line(command, run, tmp_path, capsys):
    for train, test in ((0, 1), (0, 2), (1, 1), (2, 1), (2, 2)):
        folder = tmp_path / f"{train}-{test}"
        data, others = write(folder, train, test)
        words = [run, data, *(others if command != "clusters" else []), *words_of(command, folder)]
        problem = expected_mistake(command, train)
        if problem is not None:
            assert problem in mistake(capsys, *words, command=command.split()[0]), (train, test)
            continue
        result = evaluate(capsys, *words, "--json", folder / "r.json", command=command.split()[0])
        assert finite(result), (train, test)
        if command == "knn" and train == 1:
            assert set(result["results"][0]["k-NN top1"].values()) == {1.0}  # there is no other class


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("command", COMMANDS)
def test_fewer_images_than_processes_are_right_or_one_line(command, run, tmp_path):
    """Three processes with two training images, and one or two to score."""
    if command == "report":
        return  # runs on one process
    for train, test in ((2, 1), (4, 2)):
        folder = tmp_path / f"{train}-{test}"
        data, others = write(folder, train, test)
        words = [run, data, *(others if command != "clusters" else []), *words_of(command, folder), "--batch", 12]
        words += ["--json", folder / "r.json"]
        process = Script(ROOT / "evaluate.py", [command.split()[0], *map(str, words)], tmp_path / "output", ranks=3)
        code, output = process.wait(timeout=300), (tmp_path / "output").read_text()
        problem = expected_mistake(command, train, 3)
        assert code == (2 if problem else 0), output
        if problem:
            (line,) = [line for line in output.splitlines() if line.startswith("swave: ")]
            assert problem in line
        else:
            assert finite(json.loads((folder / "r.json").read_text()))


# ---- parts of them


def scored_by_a_rank(root):
    """k-NN on raw pixels by this rank and all others, and how often each ran the function that gives the features."""
    calls = []

    def pixels(images):
        calls.append(len(images))
        return images.flatten(1)

    data = OmegaConf.create({"path": str(root / "train"), "test": str(root / "val"), "cache": str(root), "workers": 1})
    config = OmegaConf.create(
        {
            "pipeline": {"backend": "torchvision", "threads": 1, "device": "cpu", "hw_decoder_load": 0.65},
            "evaluation": {"batch_size": 2, "k": 3, "temperature": 0.1},
            "data": {"max_bad_fraction": 0.01},
        }
    )
    crops = Crops((View(8, (1.0, 1.0)),)).for_evaluation(8, 1.0)
    labelled = labelled_data(*open_splits(data, progress=False))
    return knn_accuracy(pixels, labelled, crops, config, torch.device("cpu"))["knn"], len(calls)


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize(("train", "test"), [(3, 1), (7, 5)])
def test_a_rank_without_images_to_score_takes_part(tmp_path, train, test):
    """All ranks run the network equally often, also where one has a batch more: it may communicate (ZeRO stage 3)."""
    write(tmp_path, train, test)
    ((alone, _),) = run_ranks([tmp_path], scored_by_a_rank)
    ranks = run_ranks([tmp_path] * 3, scored_by_a_rank)
    assert {accuracy for accuracy, _ in ranks} == {alone}
    assert len({calls for _, calls in ranks}) == 1


def labelled_rows(labels):
    zeros = np.zeros(len(labels))
    size = np.full(len(labels), 8)
    return SampleTable(ROOT, ["a"], zeros, zeros, size, size, size, labels, zeros)


@pytest.mark.parametrize("first", range(12))
@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_a_held_out_part_leaves_an_image_on_either_side(first, count):
    labels = np.full(40, -1)
    labels[first : first + count] = 1
    data = labelled_data(labelled_rows(labels), None)
    if count == 1:
        assert data is None
    else:
        assert len(data.train_rows) >= 1 and 1 <= len(data.test_rows) <= max(1, count // 3)
        assert sorted([*data.train_rows, *data.test_rows]) == list(range(first, first + count))


@pytest.mark.parametrize("most", [1, 2, 6, 9, 10, 11])
def test_at_most_so_many_training_images_are_compared_with(most):
    table = labelled_rows(np.zeros(10))
    assert 1 <= len(labelled_data(table, labelled_rows(np.zeros(2)), most).train_rows) <= most


def test_a_regression_on_one_row_or_one_class():
    one, two = torch.randn(1, 4), torch.randn(2, 4)
    assert best_regression(one, two, torch.tensor([0]), torch.tensor([0, 1]))["linear top1"] == 0.5
    assert best_regression(two, two, torch.tensor([0, 0]), torch.tensor([0, 0]))["linear top1"] == 1.0
    assert chosen_penalty(one, torch.tensor([0]), [1e-3, 1e-2]) == 1e-2


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_few_points_have_a_place_in_the_plane(rows):
    assert np.isfinite(neighbor_plane(np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32))).all()
