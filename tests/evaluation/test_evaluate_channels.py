"""Every sub-command on images of 5 channels and of 16-bit gray: neighbors from the files' own values, and the same
figures from folders and from a .beton."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import interpolate

from evaluation.backbones import open_backbone
from evaluation.feature_cache import cache_key
from pipeline.crops import Crops, View
from pipeline.dataset.open import open_dataset
from support.conversions import converted
from support.evaluations import evaluate, mistake, small_dataset, small_run
from support.native.images import gray_png, tiff

pytestmark = pytest.mark.slow(seconds=60)
FIGURES = {  # the arguments of each sub-command
    "knn": ["--k", "1,20"],
    "linear": ["--epochs", 2],
    "fewshot": ["--shots", "1,5", "--draws", 2],
    "semisup": ["--fraction", 0.1, "--epochs", 1],
    "transfer": ["--finetune", "--epochs", 1],
    "svm": ["--costs", "0.1,1", "--folds", 2],
    "retrieval": ["--k", "1,10"],
}


class Place(NamedTuple):
    """A run, and its images in folders and in .beton files."""

    channels: int
    run: object
    images: object
    packed: object


def images_of_three_classes(channels, count, seed):
    """Noisy images (20, 20, C) of 12 bits in 16, their class in the brightness: easy, but not without mistakes."""
    noise = np.random.default_rng(seed)
    images = [
        noise.integers(0, 2400, (20, 20, channels)) + noise.integers(0, 900) + 300 * (i % 3) for i in range(count)
    ]
    return [image.astype(np.uint16) for image in images]


def write(root, images):
    """Images in a folder of each class, as TIFFs with several channels or PNGs with one."""
    for index, image in enumerate(images):
        gray = image.shape[2] == 1
        file = root / f"class{index % 3}" / f"{index:03d}.{'png' if gray else 'tif'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        of_bands = {"photometric": "minisblack", "planarconfig": "contig"}
        file.write_bytes(gray_png(image[..., 0]) if gray else tiff(image, **of_bands))


@pytest.fixture(scope="module", params=[5, 1], ids=["5 channels", "gray"])
def place(request, tmp_path_factory):
    channels, root = request.param, tmp_path_factory.mktemp("images")
    for seed, (split, count) in enumerate({"train": 90, "val": 30}.items()):
        write(root / "images" / split, images_of_three_classes(channels, count, seed))
        (root / "packed").mkdir(exist_ok=True)
        converted(root / "images" / split, root / "packed" / f"{split}.beton", "beton", seed=None)
    run = small_run(root / "run", root / "images", channels=channels)
    return Place(channels, run, root / "images", root / "packed")


@pytest.fixture
def figures(place, tmp_path, capsys):
    """figures(command, source, *words): the result of a sub-command without what differs between sources."""

    def run(command, source, *words):
        places = ["--tables", tmp_path / "tables", "--cache", tmp_path / "cache", "--json", tmp_path / "r.json"]
        words = [place.run, source, *words, "--threads", 1, "--batch", 30, *places]
        (result,) = evaluate(capsys, *words, command=command)["results"]
        return {name: value for name, value in result.items() if name != "seconds"}

    return run


@torch.no_grad()
def features_by_hand(place, split):
    """Features and labels of a split, in the order of the folders, by the files' libraries, NumPy and torch."""
    files = sorted(place.images.glob("train/*/*")), sorted(place.images.glob(f"{split}/*/*"))
    read = tifffile.imread if place.channels > 1 else lambda file: np.asarray(Image.open(file))
    train, images = (np.stack([read(file) for file in of]).reshape(-1, 20, 20, place.channels) for of in files)
    mean, std = (train.astype(np.float64) / 65535).mean((0, 1, 2)), (train.astype(np.float64) / 65535).std((0, 1, 2))
    values = torch.from_numpy(((images / 65535 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    crops = interpolate(values, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    features = open_backbone(str(place.run)).network(crops)
    return features.numpy(), np.array([int(file.parent.name[-1]) for file in files[1]])


def test_neighbors_are_those_of_features_from_the_files_own_values(place, figures):
    (bank, labels), (queries, expected) = (features_by_hand(place, split) for split in ("train", "val"))
    found = figures("knn", place.images, "--k", "1,20")
    for k in (1, 20):
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        assert found["k-NN top1"][f"k={k}"] == theirs.fit(bank, labels).score(queries, expected)
    nearest = KNeighborsClassifier(10, metric="cosine").fit(bank, labels).kneighbors(queries, return_distance=False)
    same = labels[nearest] == expected[:, None]
    found = figures("retrieval", place.images, "--k", "1,10")
    assert found["precision"] == {"at 1": same[:, 0].mean(), "at 10": pytest.approx(same.mean())}


@pytest.mark.parametrize("command", FIGURES)
def test_folders_and_a_container_give_the_same_figures(place, figures, command):
    one, other = (figures(command, source, *FIGURES[command]) for source in (place.images, place.packed))
    assert one == other and one["feature_dim"] == 16


def test_features_in_the_cache_are_of_one_range_and_layout(place, tmp_path):
    table = open_dataset(place.images / "val", tmp_path, 1, False)
    rows, crops = np.arange(3), Crops((View(16, (1.0, 1.0)),))
    changes = ({}, {"range": ((0, 9),)}, {"layout": "chw"})
    tables = [replace(table, pixels=replace(table.pixels, **change)) for change in changes]
    keys = {cache_key({}, one, rows, crops, "ffcv") for one in tables}
    assert len(keys) == 3


def test_clusters_are_the_same_in_a_container_and_have_pictures(place, figures, tmp_path):
    results = [
        figures("clusters", getattr(place, source), "--out", tmp_path / source, "--csv", "--sheets", 1)
        for source in ("images", "packed")
    ]
    assert results[0] == results[1] and results[0]["in use"] >= 1
    tables = [
        [line.split(",")[2:] for line in (tmp_path / source / "clusters.csv").read_text().splitlines()]
        for source in ("images", "packed")
    ]
    assert tables[0] == tables[1] and len(tables[0]) == 91  # row and name are those of the source
    (sheet,) = (tmp_path / "images").glob("cluster-*.png")
    assert len(np.unique(np.asarray(Image.open(sheet).convert("L")))) > 50


def test_the_report_shows_the_images(place, tmp_path, capsys):
    from evaluation.commands.report import main

    words = [place.run, place.images, "--peers", "random", "--tables", tmp_path / "tables", "--cache", "none"]
    assert main([*map(str, words), "--out", str(tmp_path / "x.html"), "--images", "30"]) == 0, capsys.readouterr().err
    assert (tmp_path / "x.html").read_text().count("data:image/png;base64,") >= 5


def test_images_and_networks_of_other_channels_are_one_line(place, tmp_path, capsys):
    of = f"{place.channels} channel{'s' * (place.channels > 1)}"
    places = ["--tables", tmp_path / "tables", "--cache", "none"]
    peers = [place.run, place.images, "--peers", "random@resnet18", *places]
    for command, more in (("knn", []), ("svm", []), ("report", ["--out", tmp_path / "x.html"])):
        line = mistake(capsys, *peers, *more, command=command)
        assert f"images of {of} of uint16, and random@resnet18 takes 3 channels" in line
    rgb = small_dataset(tmp_path / "rgb", 6, 3)
    line = mistake(capsys, place.run, rgb, *places)
    assert f"images of 8-bit RGB, and {place.run} takes {of}" in line
