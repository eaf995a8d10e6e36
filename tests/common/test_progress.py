"""A wait of over two seconds shows a bar with rate and ETA; a short one shows nothing."""

import ast
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from common import progress
from common.progress import counted, progress_bar
from config.recipe import ROOT
from evaluation.classifiers import knn
from pipeline.batch import Batch
from pipeline.crops import Crops, View
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.table import SampleTable

RATE_AND_ETA = r"\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ ?(img/s|s/img)\]"


@pytest.fixture
def soon(monkeypatch):
    """Bars appear after a fifth of a second, and log a line as often."""
    monkeypatch.setattr(progress, "DELAY", 0.2)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.2)


def test_a_slow_loop_shows_a_bar_with_rate_and_eta(capsys, soon):
    with progress_bar(30, "slow", "img") as bar:
        for _ in counted(range(25), bar, lambda _: 1):
            time.sleep(0.03)
        shown = capsys.readouterr().err
    assert re.search(r"slow: +\d+%\|.*" + RATE_AND_ETA, shown), shown


def test_bytes_are_shown_in_mega(capsys, soon):
    with progress_bar(30_900_000, "fetching", "B") as bar:
        bar.update(15_450_000)
        time.sleep(0.3)
        shown = capsys.readouterr().err
    assert re.search(r" 15\.[45]M/30\.9M \[.*B/s\]", shown), shown


def test_a_fast_loop_shows_nothing(capsys):
    with progress_bar(5, "fast", "img") as bar:
        for _ in counted([[1], [1, 2]], bar):
            pass
        assert bar.n == 3
    assert capsys.readouterr().err == ""


def test_a_bar_comes_before_the_first_item_is_done(capsys, soon):
    shown, end = "", time.monotonic() + 60
    with progress_bar(1, "one long item", "img"):
        while "one long item:   0%" not in shown and time.monotonic() < end:
            time.sleep(0.02)
            shown += capsys.readouterr().err
    assert "one long item:   0%" in shown


def test_the_other_ranks_show_nothing(capsys, soon):
    with progress_bar(1, "long", "img", shown=False):
        time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_k_nn_of_slow_images_shows_a_bar(capsys, monkeypatch, soon):
    """Before the first training step, k-NN decodes images and computes their features."""

    def slow_batches(table, rows, crops, *, batch_size, **_):
        for start in range(0, len(rows), batch_size):
            time.sleep(0.1)
            part = rows[start : start + batch_size]
            yield Batch([torch.rand(len(part), 3, 4, 4)], part)

    monkeypatch.setattr(knn, "evaluation_batches", slow_batches)
    zeros, sizes = np.zeros(16), np.full(16, 8)
    table = SampleTable("/", ["a"], zeros, zeros, sizes, sizes, sizes, np.arange(16) % 2, zeros)
    data = Labelled(table, np.arange(12), table, np.arange(12, 16))
    settings = {"size": 4, "share": 1.0, "batch_size": 2, "k": 3, "temperature": 0.1}
    config = OmegaConf.create(
        {
            "evaluation": settings,
            "pipeline": {"backend": "torchvision", "threads": 1, "device": "cpu", "hw_decoder_load": 0.65},
            "data": {"max_bad_fraction": 0.0},
        }
    )
    accuracy = knn.pixel_knn(data, Crops((View(4, (1.0, 1.0)),)), config, torch.device("cpu"))
    assert 0 <= accuracy <= 1
    shown = capsys.readouterr().err
    assert re.search(r"k-NN: raw pixels: +\d+%\|.*" + RATE_AND_ETA, shown), shown


def test_a_program_that_ends_early_is_not_held_by_its_bar():
    code = "from common.progress import progress_bar; bar = progress_bar(9, 'x', 'img'); raise SystemExit(3)"
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert time.monotonic() - begun < 60


def test_a_killed_process_leaves_no_semaphore_of_its_bar(tmp_path):
    """Otherwise multiprocessing warns of leaked semaphores at the end of a run with killed ranks."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from common.progress import progress_bar\n"
        "def show():\n"
        "    bar = progress_bar(9, 'x', 'img')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    rank = multiprocessing.get_context('spawn').Process(target=show)\n"
        "    rank.start()\n"
        "    rank.join()\n"
        "    print(rank.exitcode)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("-9\n", "")


def test_every_bar_is_told_which_process_shows_it():
    """On many ranks only rank 0 shows bars."""
    calls = [
        (path.relative_to(ROOT), call.lineno, len(call.args))
        for package in ("model", "pipeline", "training", "evaluation")
        for path in (ROOT / package).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "progress_bar"
    ]
    assert len(calls) > 30 and not [call for call in calls if call[2] < 4]
