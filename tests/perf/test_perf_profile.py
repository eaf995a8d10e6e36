"""perf.profile: it runs the three benchmarks one after the other and writes their report."""

import html
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from config.recipe import ROOT
from perf.profile import command, on_gpu, part, rate_of, write
from support.photos import photographs, write_folder
from support.programs import run_module
from support.sample_report import sample, step

TINY = """
run: {batch_size: 8}
crops:
  global: {count: 2, size: 32, scale: [0.3, 1.0]}
  local: {count: 2, size: 16, scale: [0.1, 0.3]}
model:
  backbone: resnet
  options: {block: basic, layers: [1, 1, 1], base_width: 8, stem: small}
  hidden_dim: 16
  embedding_dim: 8
  prototypes: 16
swav: {queue: {length: 0}}
"""


def profile(*arguments):
    line = [sys.executable, "-m", "perf.profile", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "5"], "--budget=5: expected 75 to 86400 seconds"),
        (["--data", "/no/such/folder"], "--data=/no/such/folder: no such file or folder"),
        (["--out", "/no/such/folder"], "--out=/no/such/folder: there is no such folder"),
        (["--config", "config/none.yaml"], "config/none.yaml"),
        (["--config", "config/demo.yaml", "run.epoch=1"], "run.epoch"),
        (["config/demo.yaml"], "expected key=value, or --config=config/demo.yaml for a recipe"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(arguments, message):
    process = run_module("perf.profile", *arguments)
    assert process.returncode == 2 and message in process.stderr and process.stderr.count("\n") == 1, process.stderr


def options(**changes):
    return Namespace(**{"budget": 300.0, "data": None, "config": None, "settings": [], **changes})


def test_each_part_gets_its_share_of_the_budget_and_the_given_options():
    given = options(data="/images", config="config/folder.yaml", settings=["run.batch_size=64"])
    lines = {name: command(name, Path("x.json"), given, {}) for name in ("step", "loader", "sinkhorn")}
    budgets = [float(line[line.index("--budget") + 1]) for line in lines.values()]
    assert 250 < sum(budgets) < 300
    for name in ("step", "loader"):
        assert lines[name][-1] == "run.batch_size=64"
        assert lines[name][lines[name].index("--data") + 1] == "/images"
    assert "--peer" in lines["step"] and "--data" not in lines["sinkhorn"]


def test_the_loader_gets_the_rate_and_the_codes_get_the_time_of_a_step_on_gpus():
    measured = step([100.0, 101.0, 99.0]) | {"device": "NVIDIA H100"}
    assert on_gpu(measured) and not on_gpu(step([1.0]))
    # 128 images in 62 ms, the step without its waits for data, on two ranks
    assert rate_of(measured) == pytest.approx(128 / 0.062 / 2)
    loader = command("loader", Path("x.json"), options(), {"step": measured})
    assert loader[loader.index("--gpu-rate") + 1] == f"{rate_of(measured):g}"
    sinkhorn = command("sinkhorn", Path("x.json"), options(), {"step": measured})
    assert sinkhorn[sinkhorn.index("--step-ms") + 1] == "100"


def test_the_last_line_of_a_failed_part_is_its_message():
    program = "import sys; print('some', file=sys.stderr); print('swave: a rank ended', file=sys.stderr); sys.exit(1)"
    assert part([sys.executable, "-c", program]) == (1, "a rank ended")
    assert part([sys.executable, "-c", ""]) == (0, "")


def test_a_setting_that_the_first_part_refuses_ends_the_profile_before_anything_is_written(tmp_path):
    process = profile("--out", tmp_path, "run.no_such_setting=1")
    assert process.returncode == 2 and "no_such_setting" in process.stderr
    assert not list(tmp_path.iterdir())


def test_the_three_files_have_the_same_figures(tmp_path):
    report = sample()
    write(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    read = json.loads((tmp_path / "report.json").read_text())
    assert read == report
    assert {"images_per_second", "shares", "peer_ratio", "codes_share", "codes_collectives"} <= set(read["step"])
    assert {"measured", "predicted", "error", "nodes_at_1_percent", "nodes_at_5_percent"} <= set(read["sinkhorn"])
    for name in ("report.html", "report.md"):
        assert "1,280" in (tmp_path / name).read_text()


@pytest.mark.slow(seconds=80)
def test_the_whole_report_of_a_tiny_recipe(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    write_folder(tmp_path / "images", [np.ascontiguousarray(p[::2, ::2]) for p in photographs()] * 16, suffix=".jpg")
    process = profile(
        *("--budget", 75, "--out", tmp_path, "--config", tmp_path / "tiny.yaml", "--data", tmp_path / "images"),
        f"data.cache={tmp_path / 'tables'}",
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"loader", "step", "sinkhorn", "machine", "verdict"} <= set(report) and report["failed"] == {}
    assert sum(report["step"]["shares"].values()) == pytest.approx(1)
    assert report["step"]["codes_collectives"] == 3 and report["step"]["peer_ratio"] > 0
    assert {row["backend"] for row in report["loader"]["results"]} >= {"ffcv", "dali", "torchvision"}
    assert (
        report["sinkhorn"]["measured"] and report["sinkhorn"]["predicted"] and report["sinkhorn"]["error"] is not None
    )
    assert report["verdict"] in html.unescape((tmp_path / "report.html").read_text())
    assert f"**{report['verdict']}**" in (tmp_path / "report.md").read_text()
