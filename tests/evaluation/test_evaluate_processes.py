"""Two processes give the same rows, figures and files as one."""

import csv
import json

import pytest
import torch
from pyarrow import parquet
from torch.nn.functional import normalize

from config.recipe import ROOT
from evaluation.feature_cache import part_size
from model.backbone import build_backbone
from model.swav import SwAV
from support.evaluations import evaluate, published_file, small_dataset
from support.forks import Script

pytestmark = pytest.mark.slow
TRAIN, TEST = 600, 300  # images: more than two parts of features, and more than one


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    assert part_size(TRAIN) < TRAIN / 2 and part_size(TEST) < TEST
    return small_dataset(tmp_path_factory.mktemp("images"), TRAIN, TEST)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the published layout whose prototypes lie near the images' embeddings."""
    torch.manual_seed(2)
    network = SwAV(build_backbone("resnet", block="bottleneck", layers=[1, 1, 1, 1], base_width=8), 16, 8, 6).eval()
    noise = 0.7 * torch.randn(6, 3, 32, 32) + torch.linspace(-1.8, -0.6, 6)[:, None, None, None]
    with torch.no_grad():
        network.prototypes.weight.copy_(normalize(network.projection_head(network.backbone(noise))))
    return published_file(tmp_path_factory.mktemp("weights") / "swav.pth", network)


def by_two(output, *words):
    """Run a sub-command on two processes; its output goes to a file."""
    process = Script(ROOT / "evaluate.py", map(str, words), output, ranks=2)
    assert process.wait(timeout=300) == 0, output.read_text()


@pytest.fixture
def both(tmp_path, weights, images, capsys):
    """both(command, *words): the results of one process and of two, with separate caches of features."""

    def compare(command, *words, out=False):
        results = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            places = ["--tables", tmp_path / "tables", "--cache", folder / "features", "--json", folder / "r.json"]
            places += [
                "--size",
                32,
                "--backend",
                "torchvision",
                "--threads",
                1,
                *(["--out", folder / "out"] if out else []),
            ]
            if name == "one":
                evaluate(capsys, weights, images, *words, *places, command=command)
            else:
                by_two(tmp_path / "output", command, weights, images, *words, *places)
            (result,) = json.loads((folder / "r.json").read_text())["results"]
            results.append({key: value for key, value in result.items() if key != "seconds"})
        return results

    return compare


def test_clusters(tmp_path, both):
    one, two = both("clusters", "--sheets", 2, out=True)
    assert one == two and two["in use"] > 2
    ours, theirs = (parquet.read_table(tmp_path / name / "out/clusters.parquet").to_pydict() for name in ("one", "two"))
    assert ours["row"] == theirs["row"] == list(range(TRAIN))
    for column in ("name", "class", "prototype"):
        assert ours[column] == theirs[column]
    for column in ("score", "probability", "entropy"):
        assert ours[column] == pytest.approx(theirs[column], abs=1e-5)
    sizes = [
        [row["images"] for row in csv.DictReader((tmp_path / name / "out/prototypes.csv").read_text().splitlines())]
        for name in ("one", "two")
    ]
    assert sizes[0] == sizes[1]
    names = [sorted(path.name for path in (tmp_path / name / "out").iterdir()) for name in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) == 4


def test_svm(both):
    one, two = both("svm", "--costs", "0.1,1,10")
    assert two.pop("classes") == [
        {"class": each["class"], "AP": pytest.approx(each["AP"]), "cost": each["cost"]} for each in one.pop("classes")
    ]
    for name in ("mAP", "mAP 11 points", "svm top1"):
        assert two.pop(name) == pytest.approx(one.pop(name))
    assert one == two


def test_retrieval(both):
    one, two = both("retrieval", "--k", "1,3,40")
    for name in ("recall", "precision"):
        assert two.pop(name) == pytest.approx(one.pop(name))
    assert two.pop("mAP at R") == pytest.approx(one.pop("mAP at R"))
    assert one == two
