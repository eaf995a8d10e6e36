"""Two nodes that a real sshd on this machine serves; skipped where sshd is missing."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from config.recipe import ROOT
from perf.kill_check import make_recipe
from support.nodes.sshd import NEEDS_SSHD
from support.programs import wait_for_steps, words_of

pytestmark = [pytest.mark.slow, *NEEDS_SSHD]


def start(folder, *settings):
    recipe = make_recipe(folder)
    nodes = ["--hostfile", str(folder / "hosts"), "--ssh", f"ssh -F {folder}/ssh_config"]
    command = [sys.executable, "-m", "launch.start", *nodes, str(recipe), f"run.directory={folder / 'run'}", *settings]
    with (folder / "output").open("w") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)


def left_behind(folder):
    processes = psutil.process_iter(["cmdline"])
    with_folder = [p for p in processes if any(f"{folder}/run" in word for word in p.info["cmdline"] or [])]
    return [p for p in with_folder if p.pid != os.getpid()]


def finish(folder, process, seconds):
    code = process.wait(timeout=seconds)
    deadline = time.monotonic() + 120
    while left_behind(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_behind(folder)
    return code, (folder / "output").read_text()


def test_two_hosts_train_and_a_killed_connection_leaves_nothing(cluster):
    process = start(cluster, "run.epochs=2000", "checkpoint.every=never")
    wait_for_steps(cluster / "run", 3, process, cluster / "output")
    connection = next(p for p in psutil.Process(process.pid).children() if "two" in words_of(p))
    connection.kill()
    code, output = finish(cluster, process, 120)
    assert code != 0 and "NO CLUSTER" not in output, output


def test_a_host_that_cannot_be_reached_ends_it_with_its_reason(cluster):
    (cluster / "hosts").write_text("one slots=1\nnowhere.invalid slots=1\n")
    code, output = finish(cluster, start(cluster), 120)
    assert code != 0
    assert "nowhere.invalid" in output
