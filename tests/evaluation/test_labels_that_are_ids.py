"""Labels that are ids: as many classes as occur, whatever their numbers are."""

import itertools

import numpy as np
import pytest
import torch

from evaluation.clusters import class_entropy, summary
from evaluation.retrieval import retrieval_sums
from model.nearest import predict_each
from perf.step.steps import _labels as labels_of_a_step
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.dataset.shards import Record, pack
from support.evaluations import evaluate
from training.build import probe_of

IDS = (5, 4_999_998, 999_999_999)  # of the images' three classes, in their order
COMMANDS = {
    "knn": ["--k", "5,20"],
    "linear": ["--epochs", 2, "--lr", 2, "--bn"],
    "linear --cached": ["--cached"],
    "semisup": ["--fraction", 0.5, "--lr", 0.05, "--head-lr", 0.5, "--epochs", 1],
    "transfer": ["--finetune", "--epochs", 1],
    "svm": ["--costs", "1"],
    "retrieval": ["--sheet", "{}/sheet.png"],
    "clusters": ["--out", "{}/clusters", "--sheets", 1],
}


@pytest.fixture(scope="module")
def relabelled(data, tmp_path_factory):
    """Folders of shards with the images of `data`: their labels are 0, 1, 2 in one and IDS in the other."""
    root = tmp_path_factory.mktemp("relabelled")
    for name, ids in (("plain", range(3)), ("ids", IDS)):
        for split in ("train", "val"):
            table = open_dataset(data / split, root / "tables", workers=1, progress=False)
            rows, reader = range(len(table)), Reader(table)
            records = [
                Record(f"{row:03d}", reader.read([row])[0].tobytes(), "png", ids[table.label[row]]) for row in rows
            ]
            pack(records, root / name / split, "some")
            reader.close()
    return root


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("command", COMMANDS)
def test_their_figures_are_those_of_labels_from_zero(command, run, relabelled, tmp_path, capsys):
    word, figures = command.split()[0], {}
    for name in ("plain", "ids"):
        folder = tmp_path / name
        folder.mkdir()
        places = ["--tables", folder, "--cache", folder / "cache", "--json", folder / "r.json"]
        options = [str(option).format(folder) for option in COMMANDS[command]]
        more = ["--backend", "torchvision", "--batch", 30]
        whole = evaluate(capsys, run, relabelled / name, *options, *places, *more, command=word)
        (figures[name],) = whole["results"]
        figures[name].pop("seconds", None)
        if word != "clusters":
            assert whole["data"]["classes"] == 3
    if word == "svm":
        names = [[one.pop("class") for one in figures[name]["classes"]] for name in ("plain", "ids")]
        assert names == [["0", "1", "2"], [str(one) for one in IDS]]
    assert figures["ids"] == figures["plain"]


def test_neighbors_vote_for_any_numbers():
    """Against a vote by hand; also where each image is a class of its own."""
    noise = torch.Generator().manual_seed(0)
    bank, queries = (torch.nn.functional.normalize(torch.randn(n, 6, generator=noise)) for n in (60, 40))
    ids = torch.tensor(IDS)[torch.randint(3, (60,), generator=noise)]
    for labels, k in itertools.product((ids, ids.cumsum(0)), (1, 7, 60)):
        predicted = predict_each(bank, labels, queries, [k, 60], 0.2, chunk=16)[0]
        similarity, nearest = (queries @ bank.T).topk(k)
        weights = (similarity / 0.2).exp()
        for row in range(len(queries)):
            votes = {}
            for weight, label in zip(weights[row].tolist(), labels[nearest[row]].tolist(), strict=True):
                votes[label] = votes.get(label, 0.0) + weight
            assert int(predicted[row]) == max(votes, key=votes.get)


def test_clusters_and_retrieval_count_the_labels_that_occur():
    noise = np.random.default_rng(0)
    prototype, plain = noise.integers(0, 4, 200), noise.integers(-1, 3, 200)
    ids = np.array([*IDS, -1], np.int32)[plain]
    assert summary(prototype, ids, 5) == summary(prototype, plain, 5)
    np.testing.assert_array_equal(class_entropy(prototype, ids, 5), class_entropy(prototype, plain, 5))
    gallery, queries = (torch.nn.functional.normalize(torch.randn(n, 5)) for n in (40, 13))
    known, asked = torch.randint(0, 3, (40,)), torch.randint(0, 3, (13,))
    by_id = retrieval_sums(gallery, torch.tensor(IDS)[known], queries, torch.tensor(IDS)[asked], [1, 5])
    torch.testing.assert_close(by_id, retrieval_sums(gallery, known, queries, asked, [1, 5]))


def test_the_probe_has_an_output_for_each_class(relabelled, tmp_path):
    train, test = (
        open_dataset(relabelled / "ids" / split, tmp_path, workers=1, progress=False) for split in ("train", "val")
    )
    probe = probe_of(Labelled(train, train.usable(), test, test.usable()), train, 7)
    assert probe.state["weight"].shape == (3, 8)
    assert sorted(set(probe.labels.tolist())) == [0, 1, 2]
    assert sorted(set(labels_of_a_step(train, 3, 0).tolist())) == [0, 1, 2]
