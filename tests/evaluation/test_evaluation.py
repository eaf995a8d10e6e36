"""k-NN, code monitor and the preview sheet."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from config.recipe import ROOT, load_config
from evaluation.classifiers.knn import backbone_knn, untrained_knn
from evaluation.features import gather
from model.monitor import CodeMonitor, advice
from model.nearest import predict
from pipeline.crops import crops_from_config
from pipeline.dataset.labelled import labelled_data
from pipeline.dataset.open import open_dataset, open_splits
from pipeline.dataset.table import DatasetError
from support.photos import flat_colors, photographs, write_folder
from support.programs import run_module
from support.ranks import run_ranks
from support.tiny_runs import make_workplace
from training.auto import fit
from training.build import starting_network
from training.distributed import Cluster


def test_weighted_knn_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(7, 16))
    labels = generator.integers(0, 7, 900)
    points = centers[labels] + generator.normal(size=(900, 16)) * 1.5
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    bank, queries = points[:600], points[600:]
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs.fit(bank, labels[:600])
    ours = predict(*(torch.from_numpy(x) for x in (bank, labels[:600], queries)), k=20, temperature=0.07, chunk=77)
    assert (ours.numpy() == theirs.predict(queries)).mean() == 1.0


def test_a_bank_smaller_than_k_is_used_whole():
    bank = torch.eye(3)
    assert predict(bank, torch.tensor([0, 1, 1]), torch.eye(3), k=20).tolist() == [0, 1, 1]


def gather_rows(count):
    return gather(torch.arange(count * 2.0).view(count, 2) + 100 * count).tolist()


def test_ranks_with_different_numbers_of_rows_gather_them_all():
    expected = [[300 + 2.0 * i, 301 + 2.0 * i] for i in range(3)] + [[100.0, 101.0]]
    assert run_ranks([3, 1], gather_rows) == [expected, expected]


def test_a_tenth_of_the_labels_is_held_out_where_there_is_no_test_split(tmp_path):
    table = open_dataset(write_folder(tmp_path / "a", flat_colors(200, 8)), tmp_path / "t", workers=1, progress=False)
    data = labelled_data(table, None)
    assert not set(data.train_rows) & set(data.test_rows)
    assert len(data.train_rows) + len(data.test_rows) == 200
    assert 10 <= len(data.test_rows) <= 30


def test_the_untrained_network_is_the_one_with_which_the_run_starts(tmp_path):
    """It is built again from the seed, and training goes on with its own random numbers."""
    config = load_config([str(make_workplace(tmp_path) / "tiny.yaml"), "pipeline.backend=torchvision"])
    table, _ = open_splits(config.data, progress=False)
    fit(config, len(table.usable()), Cluster())
    data, device = labelled_data(table, None), torch.device("cpu")
    crops = crops_from_config(config.crops, "torchvision")
    torch.manual_seed(config.run.seed)
    network = starting_network(config.model)
    state = torch.random.get_rng_state()
    untrained = untrained_knn(data, crops, config, device)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert untrained["knn_random_init"] == backbone_knn(network, network, data, crops, config, device)["knn"]
    config.model.weights = str(tmp_path / "gone since the start.pth")
    assert untrained_knn(data, crops, config, device) == untrained | {"knn_random_init": None}


def test_images_without_classes_give_no_knn(tmp_path):
    for index, image in enumerate(flat_colors(5, 8)):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "a" / f"{index}.png")
    assert labelled_data(open_dataset(tmp_path / "a", tmp_path / "t", workers=1, progress=False), None) is None


def test_the_monitor_distinguishes_sharp_balanced_codes_from_uniform_ones():
    sharp, uniform = CodeMonitor(8, 4), CodeMonitor(8, 4)
    embeddings = torch.nn.functional.normalize(
        torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    sharp.update(torch.eye(8).repeat(2, 2, 1), embeddings, torch.tensor(1.0))
    sharp.update(torch.eye(8).repeat(2, 2, 1), embeddings, torch.tensor(2.0))
    uniform.update(torch.full((2, 16, 8), 1 / 8), embeddings * 0, torch.tensor(math.log(8)))
    one, other = sharp.summary(), uniform.summary()
    assert one["mean_loss"] == 1.5
    assert one["prototypes_in_use"] == 1.0
    assert one["code_entropy"] == pytest.approx(0.0, abs=1e-9)
    assert one["mean_code_entropy"] == pytest.approx(math.log(8))
    assert 0.3 < one["embedding_std"] < 0.6  # 1 / sqrt(4) for an even spread
    assert other["code_entropy"] == pytest.approx(math.log(8))
    assert other["embedding_std"] == 0.0


def test_each_problem_is_named_with_a_remedy():
    healthy = {"mean_loss": 2.0, "prototypes_in_use": 0.9, "embedding_std": 0.1}
    assert advice(healthy, 100) == []
    (stuck,) = advice(healthy | {"mean_loss": math.log(100)}, 100)
    assert "stands at ln(prototypes)" in stuck and "lower swav.epsilon" in stuck
    assert advice(healthy | {"mean_loss": 6.0}, 100) == []  # a first epoch at a high rate
    above, unused = advice(healthy | {"mean_loss": 7.2, "prototypes_in_use": 0.2}, 100)
    assert "worse than a guess" in above and "fewer model.prototypes" in unused
    stuck = advice(healthy | {"mean_loss": math.log(100), "prototypes_in_use": 0.2}, 100, "deepclusterv2")
    assert len(stuck) == 2 and not any("swav." in line for line in stuck)  # settings that the method does not have
    assert "collapse" in advice(healthy | {"embedding_std": 0.0}, 100)[0]


def test_classes_of_the_test_folder_are_matched_by_name(tmp_path):
    photos = photographs()
    for split, names in {"train": "abc", "val": "bc"}.items():
        for name in names:
            write_folder(tmp_path / split / name, photos[:2])
    data = OmegaConf.create({"path": str(tmp_path), "test": None, "cache": str(tmp_path / "tables"), "workers": 1})
    train, test = open_splits(data, progress=False)
    assert [train.classes[label] for label in sorted(set(test.label))] == ["b", "c"]
    write_folder(tmp_path / "val" / "d", photos[:2])
    with pytest.raises(DatasetError, match="its class 'd' is not in the training set"):
        open_splits(data, progress=False)


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_the_preview_shows_each_crop_in_the_colors_of_its_window(tmp_path, backend):
    root = write_folder(tmp_path / "photos", photographs())
    out = tmp_path / "sheet.png"
    settings = [f"data.path={root}", f"data.cache={tmp_path}", "crops.local.count=4", f"pipeline.backend={backend}"]
    words = ["config/demo.yaml", *settings, "--rows", "3", "--out", str(out)]
    if backend == "dali":  # as a user starts it
        subprocess.run([sys.executable, "-m", "pipeline.preview", *words], cwd=ROOT, check=True, timeout=120)
    else:
        assert run_module("pipeline.preview", *words, folder=ROOT).returncode == 0
    sheet = np.asarray(Image.open(out).convert("RGB"))
    assert sheet.shape[0] > 3 * 150
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000  # pictures, not blanks


def test_a_preview_of_nothing_is_one_line(tmp_path):
    done = run_module("pipeline.preview", "config/demo.yaml", f"data.path={tmp_path}/none", folder=ROOT)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
