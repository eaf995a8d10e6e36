"""perf.compare: the comparison of two reports."""

import json
import subprocess
import sys

import pytest

from config.recipe import ROOT
from perf.compare import Figure, compare, interval, row_of
from support.programs import run_module
from support.sample_report import sample


def run(*arguments):
    return run_module("perf.compare", *arguments)


@pytest.fixture
def write(tmp_path):
    def write(name, report):
        (tmp_path / name).write_text(json.dumps(report))
        return tmp_path / name

    return write


def test_the_same_run_twice_has_not_regressed(write):
    old, new = write("a.json", sample()), write("b.json", sample())
    command = [sys.executable, "-m", "perf.compare", str(old), str(new)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert "Nothing has regressed by more than 5%" in process.stdout


def test_a_slower_loader_and_step_are_named(write, tmp_path):
    old = write("a.json", sample())
    new = write("b.json", sample(milliseconds=(120.0, 121.0, 119.0), ffcv=(1200.0, 1210.0, 1190.0)))
    process = run(old, new, "--json", tmp_path / "c.json")
    assert process.returncode == 1
    regressions = json.loads((tmp_path / "c.json").read_text())["regressions"]
    assert regressions == ["loader: ffcv full, images/s", "step: ms"]
    assert "Regressed by more than 5%: loader: ffcv full, images/s; step: ms" in " ".join(process.stdout.split())
    assert run(old, new, "--threshold", "0.3").returncode == 0


def test_single_parts_of_a_report_are_accepted(write):
    for part in ("loader", "step", "sinkhorn"):
        old, new = write("a.json", sample()[part]), write("b.json", sample()[part])
        assert run(old, new).returncode == 0


def test_relative_to_its_decoding_rate_a_slower_machine_has_not_regressed(write):
    slower = sample(milliseconds=(200.0, 202.0, 198.0), ffcv=(750.0, 755.0, 745.0))
    slower["loader"]["decode_rounds"] = [1500.0] * 3
    slower["loader"]["results"][1]["rounds"] = [75.0, 76.0, 74.5]
    old, new = write("a.json", sample()), write("b.json", slower)
    assert run(old, new).returncode == 1
    assert run(old, new, "--relative").returncode == 0


def test_an_interval_holds_the_ratio_and_widens_with_the_noise():
    quiet = interval([100, 101, 99, 100, 100], [110, 111, 109, 110, 110])
    noisy = interval([100, 150, 60, 100, 100], [110, 150, 70, 110, 110])
    assert quiet[0] <= 1.1 <= quiet[1] and noisy[0] <= 1.1 <= noisy[1]
    assert noisy[1] - noisy[0] > 5 * (quiet[1] - quiet[0])
    assert quiet == interval([100, 101, 99, 100, 100], [110, 111, 109, 110, 110])


def test_noise_is_no_regression_and_few_rounds_are_not_judged():
    noisy = row_of("x", Figure("less", [100, 180, 60, 95, 140]), Figure("less", [110, 70, 190, 108, 150]), 0.05)
    assert not noisy.regressed and noisy.low < 1 < noisy.high
    few = row_of("x", Figure("less", [100.0]), Figure("less", [300.0]), 0.05)
    assert not few.regressed and few.low is None


def test_only_figures_of_both_runs_are_compared():
    rows = compare({"a": Figure("more", [1.0]), "b": Figure("more", [1.0])}, {"b": Figure("more", [1.0])})
    assert [row.name for row in rows] == ["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "not a report of perf.profile"), ('{"rows": []}', "not a report of perf.profile")],
)
def test_another_file_is_one_line(write, tmp_path, text, message):
    (tmp_path / "b.json").write_text(text)
    process = run(write("a.json", sample()), tmp_path / "b.json")
    assert process.returncode == 2 and message in process.stderr and process.stderr.count("\n") == 1


def test_a_missing_file_and_a_wrong_threshold_are_one_line(write, tmp_path):
    old = write("a.json", sample())
    for arguments in ((old, tmp_path / "none.json"), (old, old, "--threshold", "5")):
        process = run(*arguments)
        assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
