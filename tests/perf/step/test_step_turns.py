"""Two checkouts train in turns: the ratio of their speeds, and nothing runs afterwards."""

import json

import psutil
import pytest

from config.recipe import ROOT
from perf.step.turns import take_turns
from support.programs import run_module
from support.tiny_runs import make_workplace

SCRIPT = """
import json, sys, time
from pathlib import Path

run = next(Path(word.partition("=")[2]) for word in sys.argv if word.startswith("run.directory="))
run.mkdir()
for step in range(10_000):
    end = time.process_time() + {seconds}  # of CPU time, which stands still while a process is stopped
    while time.process_time() < end:
        pass
    with (run / "metrics.jsonl").open("a") as file:
        print(json.dumps({{"step": step, "images_per_second": 1.0}}), file=file)
"""


def checkout(folder, seconds):
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT.format(seconds=seconds))
    return folder


@pytest.mark.slow(seconds=4)
def test_one_runs_while_the_other_is_stopped(tmp_path):
    slow, fast = checkout(tmp_path / "slow", 0.4), checkout(tmp_path / "fast", 0.1)
    base, now = take_turns([slow, fast], [], tmp_path, 6)
    ratios = sorted(old / new for old, new in zip(base, now, strict=True))
    assert 2 < ratios[len(ratios) // 2] < 8  # 4 on a quiet machine
    for number in ("0", "1"):  # two turns for warming up, six that count, and at most one line more of each turn
        lines = (tmp_path / number / "run" / "metrics.jsonl").read_text().count("\n")
        assert 8 <= lines <= 16
    assert not [child for child in psutil.Process().children() if "train.py" in child.cmdline()]


def test_a_training_that_ends_is_an_error_with_its_last_lines(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.py").write_text("raise SystemExit('no such setting')")
    with pytest.raises(RuntimeError, match="broken ended: no such setting"):
        take_turns([tmp_path / "broken"] * 2, [], tmp_path, 4)


@pytest.mark.slow(seconds=20)
def test_two_checkouts_train_a_recipe(tmp_path):
    place = make_workplace(tmp_path)
    words = [place / "tiny.yaml", f"data.path={place}/images", "checkpoint.every=never"]
    words += ["--base", ROOT, "--rounds", 4, "--steps", 2, "--json", tmp_path / "turns.json"]
    done = run_module("perf.step.turns", *words)
    assert done.returncode == 0 and done.stdout.startswith("speed, now over base: "), done
    report = json.loads((tmp_path / "turns.json").read_text())
    assert len(report["seconds"]["base"]) == len(report["seconds"]["now"]) == 4
    assert 0.2 < report["speed"]["median"] < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config/demo.yaml", "--base", "/nowhere"], "--base=/nowhere: expected a checkout of swave"),
        (["no.yaml", "--base", "."], "no.yaml: no such recipe"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    done = run_module("perf.step.turns", *arguments, folder=ROOT)
    assert done.returncode == 2 and done.stderr == f"swave: {message}\n"
