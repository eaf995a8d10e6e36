"""perf.profile: its parts' command lines, what it does when one fails, what it writes, and mistakes in one line."""

import json
import subprocess
import sys

import pytest

from config.recipe import ROOT
from perf.profile import SHARES, command, parsed, part, rate_of, write
from tests.sample_report import sample


def run(*arguments):
    line = [sys.executable, "-m", "perf.profile", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


def flag(line, name):
    return line[line.index(name) + 1]


def test_parts_share_the_budget_and_the_data(tmp_path):
    options = parsed(["--budget", "200", "--data", "images", "--config", "config/demo.yaml", "run.batch_size=16"])
    lines = {name: command(name, tmp_path / "x.json", options, {}) for name in SHARES}
    assert sum(float(flag(line, "--budget")) for line in lines.values()) <= 200
    for name in ("step", "loader"):
        assert flag(lines[name], "--data") == "images" and flag(lines[name], "--config") == "config/demo.yaml"
        assert lines[name][-1] == "run.batch_size=16"
    assert "--peer" in lines["step"] and "--data" not in lines["sinkhorn"]


def test_the_loader_gets_the_rate_and_the_codes_the_time_of_a_gpus_step(tmp_path):
    options, step = parsed([]), sample()["step"]
    on_gpu = {"step": step | {"device": "NVIDIA H100"}}
    # 128 images in 62 ms of computing of 100, on 2 ranks
    assert float(flag(command("loader", tmp_path, options, on_gpu), "--gpu-rate")) == pytest.approx(1032.26)
    assert rate_of(step) == pytest.approx(128 / 0.062 / 2)
    assert float(flag(command("sinkhorn", tmp_path, options, on_gpu), "--step-ms")) == 100
    for name in ("loader", "sinkhorn"):
        line = command(name, tmp_path, options, {"step": step})
        assert "--gpu-rate" not in line and "--step-ms" not in line


def test_a_part_that_fails_is_told_by_its_last_line():
    told = "import sys; print('some', file=sys.stderr); print('swave: a rank ended', file=sys.stderr); sys.exit(1)"
    assert part([sys.executable, "-c", told]) == (1, "a rank ended")
    assert part([sys.executable, "-c", ""]) == (0, "")


def test_the_three_files_have_the_same_figures(tmp_path):
    report = sample()
    write(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found == report
    assert {"images_per_second", "shares", "peer_ratio", "codes_share", "codes_collectives"} <= set(found["step"])
    assert {"measured", "predicted", "error", "nodes_at_1_percent", "nodes_at_5_percent"} <= set(found["sinkhorn"])
    assert "results" in found["loader"] and {"machine", "verdict"} <= set(found)
    for name in ("report.html", "report.md"):
        assert "1,280" in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "5"], "--budget=5: expected 60 to 86400 seconds"),
        (["--data", "no/such/folder"], "--data=no/such/folder: no such file or folder"),
        (["--out", "no/such/folder"], "--out=no/such/folder: there is no such folder"),
        (["config/demo.yaml"], "config/demo.yaml: expected key=value, or --config=config/demo.yaml for a recipe"),
        (["--config", "no.yaml"], "no.yaml"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("swave: ") and done.stderr.count("\n") == 1


def test_a_wrong_setting_ends_it_before_anything_is_drawn(tmp_path):
    done = run("--out", tmp_path, "run.no_such_setting=1")
    assert done.returncode == 2 and "no_such_setting" in done.stderr
    assert not list(tmp_path.iterdir())
