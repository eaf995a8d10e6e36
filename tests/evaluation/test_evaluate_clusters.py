"""Clusters of images: their table, figures and pictures."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from sklearn.metrics import normalized_mutual_info_score

from evaluation.backbones import open_backbone
from evaluation.clusters import assigned, class_entropy, prototype_scores, summary
from support.evaluations import evaluate, mistake


def arguments(root):
    places = ["--tables", root / "tables", "--cache", root / "features", "--json", root / "r.json"]
    return [*places, "--backend", "torchvision", "--out", root / "out"]


def test_each_image_has_its_prototype_score_and_entropy(tmp_path, run, data, capsys):
    output = evaluate(capsys, run, data, *arguments(tmp_path), command="clusters")
    table = parquet.read_table(tmp_path / "out" / "clusters.parquet").to_pydict()
    assert len(table["name"]) == 90
    assert table["name"][0] == "class0/00000.png" and table["class"][0] == "class0"
    assert max(table["score"]) <= 1 + 1e-5
    assert all(0 <= entropy <= np.log(6) + 1e-5 for entropy in table["entropy"])
    with open(tmp_path / "out" / "prototypes.csv") as file:
        sizes = [int(row["images"]) for row in csv.DictReader(file)]
    assert sizes == np.bincount(table["prototype"], minlength=6).tolist()
    assert output["results"][0]["in use"] == sum(size > 0 for size in sizes)
    largest = int(np.argmax(sizes))
    sheet = np.asarray(Image.open(tmp_path / "out" / f"cluster-{largest:05d}.png"))
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100  # pictures, not blanks
    assert len(list((tmp_path / "out").glob("cluster-*.png"))) == sum(size > 0 for size in sizes)


def test_scores_are_those_that_the_whole_network_gives(run):
    swav = open_backbone(str(run)).swav
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        _, expected, *_ = swav([images], 5)
        torch.testing.assert_close(prototype_scores(swav, swav.backbone(images)), expected[0])


def test_scores_become_prototype_probability_and_entropy():
    columns = assigned(torch.tensor([[0.5, 0.1, 0.1], [0.2, 0.2, 0.2]]), 0.1)
    assert columns["prototype"].tolist() == [0, 0]
    share = np.exp([5, 1, 1]) / np.exp([5, 1, 1]).sum()
    assert columns["probability"][0] == pytest.approx(share[0])
    assert columns["entropy"] == pytest.approx([-(share * np.log(share)).sum(), np.log(3)])


def test_purity_and_information_of_a_clustering():
    generator = np.random.default_rng(0)
    label, prototype = generator.integers(0, 4, 500), generator.integers(0, 9, 500)
    prototype[:300] = label[:300]
    figures = summary(prototype, label, 12)
    assert figures["mutual information"] == pytest.approx(normalized_mutual_info_score(label, prototype))
    assert figures["in use"] == 9 and figures["prototypes"] == 12
    assert summary(label, label, 4)["purity"] == 1.0
    assert "purity" not in summary(label, np.full(500, -1), 4)
    entropy = class_entropy(np.array([0, 0, 1, 3]), np.array([0, 1, 1, -1]), 4)
    np.testing.assert_allclose(entropy, [np.log(2), 0, np.nan, np.nan])


def test_csv_and_no_sheets(tmp_path, run, data, capsys):
    evaluate(capsys, run, data, "--csv", "--sheets", 0, *arguments(tmp_path), command="clusters")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clusters.csv", "prototypes.csv"]
    assert len((tmp_path / "out" / "clusters.csv").read_text().splitlines()) == 91


def test_a_backbone_alone_has_no_clusters(tmp_path, data, capsys):
    line = mistake(capsys, "random@resnet18", data, "--out", tmp_path / "o", command="clusters")
    assert "has no prototypes" in line
    (tmp_path / "file").write_text("")
    assert "is a file" in mistake(capsys, "random@resnet18", data, "--out", tmp_path / "file", command="clusters")
