"""Counts of 0, 1 and 2 in the arguments and data of every program: right, or one line and exit code 2."""

import importlib

import numpy as np
import pytest
from PIL import Image

from config.errors import ConfigError
from launch.nodes import slurm_nodes
from pipeline.dataset.open import open_dataset

DEMO, NONE = "config/demo.yaml", "data.path=/nowhere"
MISTAKES = [
    ("launch.start", ["--processes", "-1", DEMO], "--processes: -1: expected an integer of at least 0"),
    ("launch.start", ["--nodes", "-2", DEMO], "--nodes: -2: expected an integer of at least 0"),
    ("launch.start", ["--processes", "3", DEMO], "run.batch_size=128 does not split over 3 processes"),
    ("launch.cluster_check", ["--nodes", "-1", DEMO], "--nodes: -1: expected an integer of at least 0"),
    ("launch.pod", ["--nodes", "0", "--processes", "1", "--master", "a", DEMO], "--nodes: 0: expected"),
    ("launch.pod", ["--nodes", "1", "--processes", "0", "--master", "a", DEMO], "--processes: 0: expected"),
    ("pipeline.preview", [DEMO, NONE, "--rows", "0"], "--rows=0 --epoch=0: expected 1 to 1000 rows"),
    ("pipeline.convert", ["{}", "{}/x.beton", "--format", "beton", "--workers", "0"], "--workers=0"),
    ("pipeline.convert", ["{}", "{}/x.beton", "--format", "beton", "--shard-images", "0"], "--shard-images=0"),
    ("pipeline.convert", ["{}", "{}/x.beton", "--format", "beton", "--shard-size", "0"], "--shard-size=0"),
    ("pipeline.convert", ["{}/none", "{}/x.beton", "--format", "beton"], "no images"),
    ("perf.loader", ["--images", "0"], "--images=0: expected at least 1"),
    ("perf.loader", ["--batch", "0"], "--batch=0: expected at least 1"),
    ("perf.loader", ["--images", "1"], "--images=1 is less than --batch=64"),
    ("perf.loader", ["--rounds", "0"], "--rounds=0: expected at least 1"),
    ("perf.loader", ["--threads", "-1"], "--threads=-1: expected 1 to"),
    ("perf.profile", ["--budget", "0"], "--budget=0: expected"),
    ("perf.science", ["--minutes", "0"], "--minutes=0: expected more than 0"),
    ("perf.science", ["--rounds", "0"], "--rounds=0: expected 1 or more"),
    ("perf.science", ["--cores", "-1"], "--cores=-1: expected 1 to"),
    ("perf.science.supervised", ["o", DEMO, "d", "--epochs", "0", "--seed", "0"], "--epochs: 0: expected"),
    ("perf.step", ["--ranks", "-1", "--config", DEMO], "--ranks=-1: expected at least 1"),
    ("perf.sinkhorn", ["--ranks", "0"], "--ranks=0: expected 1 to 64"),
    ("perf.sinkhorn", ["--rounds", "0"], "--rounds=0: expected 3 or more"),
    ("perf.sinkhorn.textbook", ["--prototypes", "0"], "--prototypes=0: give 1 or more"),
    ("perf.kill_check", ["--kills", "0"], "--kills=0: expected"),
    ("perf.memory", ["--ranks", "0"], "--ranks: 0: expected an integer of at least 1"),
    ("perf.save_time", ["--ranks", "0"], "--ranks: 0: expected an integer of at least 1"),
    ("perf.gpu_check", ["--batch", "1"], "--batch: 1: expected an integer of at least 2"),
    ("perf.parity", ["--images", "0"], "--images=0: expected at least 1"),
    ("perf.loader.memory", ["t.npz", "--backend", "dali", "--batch", "0"], "--batch: 0: expected"),
    ("evaluation.commands.knn", ["random@resnet18", "--k", "0"], "--k=0: expected"),
    ("evaluation.commands.knn", ["random@resnet18", "--batch", "0"], "--batch=0: expected"),
    ("evaluation.commands.knn", ["random@resnet18", "--threads", "-1"], "--threads=-1: expected"),
    ("evaluation.commands.linear", ["random@resnet18", "--epochs", "0"], "--epochs=0: expected"),
    ("evaluation.commands.svm", ["random@resnet18", "--folds", "1"], "--folds=1: expected"),
    ("evaluation.commands.retrieval", ["random@resnet18", "--queries", "0"], "--queries=0: expected"),
    ("evaluation.commands.clusters", ["r", "--out", "{}/c", "--images", "0"], "--images=0: expected"),
    ("evaluation.commands.clusters", ["r", "--out", "{}/c", "--sheets", "-1"], "--sheets=-1: expected"),
    ("evaluation.commands.report", ["none", "--images", "0"], "--images=0: expected"),
    ("evaluation.commands.semisup", ["random@resnet18", "--fraction", "0"], "--fraction=0.0: expected"),
]


def main_of(module):
    found = importlib.import_module(module)
    return found.main if hasattr(found, "main") else importlib.import_module(f"{module}.__main__").main


@pytest.mark.parametrize(("module", "arguments", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_count_without_meaning_is_one_line(module, arguments, message, tmp_path, capsys, monkeypatch):
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    try:
        code = main_of(module)([word.format(tmp_path) for word in arguments])
    except SystemExit as end:
        code = end.code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert code == 2 and line.startswith("swave: ") and message in line


@pytest.mark.parametrize("variable", ["SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"])
def test_a_node_of_slurm_without_tasks_is_one_line(variable):
    environment = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_NTASKS": "1", variable: "0(x2)"}
    environment[variable] = "0" if variable == "SLURM_NTASKS_PER_NODE" else "1,0"
    with pytest.raises(ConfigError, match=r"gives a[12] 0 tasks; expected at least 1"):
        slurm_nodes(environment, 2)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("form", ["beton", "wds", "index"])
def test_one_or_two_images_are_converted_and_shown(count, form, tmp_path, capsys):
    """With more images a part, more workers and more rows of the sheet than there are images."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    for index in range(count):
        Image.fromarray(np.full((9, 8, 3), 90 * index, np.uint8)).save(tmp_path / "images" / "a" / f"{index}.png")
    out = tmp_path / {"beton": "x.beton", "wds": "x", "index": "x.npz"}[form]
    words = ["--format", form, "--workers", "5", "--shard-images", "1" if form == "wds" else "7"]
    assert main_of("pipeline.convert")([str(tmp_path / "images"), str(out), *words]) == 0
    assert len(open_dataset(out, tmp_path / "t", workers=1, progress=False).usable()) == count
    settings = [f"data.path={out}", f"data.cache={tmp_path}", "pipeline.backend=torchvision"]
    assert main_of("pipeline.preview")([DEMO, *settings, "--rows", "6", "--out", str(tmp_path / "p.png")]) == 0
    assert Image.open(tmp_path / "p.png").height < 200 * (count + 1)
    capsys.readouterr()
