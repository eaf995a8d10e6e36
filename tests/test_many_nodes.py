"""Two nodes, emulated by a launcher each on this machine: started, stopped, and lost in every way."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from config.recipe import ROOT, ConfigError
from launch.nodes import Node
from launch.start import choose_nodes, node_commands
from perf.kill_check import make_recipe

SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-4]"}


# ---------------------------------------------------------------------------------------------- which, and how
def test_nodes_are_the_hostfiles_else_slurms_else_made_believe(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=8\nb\n")
    assert choose_nodes(0, 4, hosts, SLURM, 0) == ("ssh", [Node("a", 8), Node("b", 4)])
    assert choose_nodes(1, 4, hosts, {}, 0) == ("ssh", [Node("a", 8)])
    assert choose_nodes(0, 0, None, SLURM, 8) == ("srun", [Node(f"n{i}", 8) for i in range(1, 5)])
    assert choose_nodes(2, 0, None, SLURM, 8) == ("srun", [Node("n1", 8), Node("n2", 8)])
    assert choose_nodes(1, 0, None, SLURM, 8) == ("local", [Node("localhost", 8)])
    assert choose_nodes(0, 0, None, {}, 8) == ("local", [Node("localhost", 8)])
    assert choose_nodes(4, 1, None, {}, 0) == ("local", [Node("localhost", 1)] * 4)


def test_nodes_are_not_emulated_where_there_are_gpus():
    with pytest.raises(ConfigError, match=r"NODES=4 without a cluster is only emulated.*HOSTFILE=hosts, or .* SLURM"):
        choose_nodes(4, 0, None, {}, 8)


def test_what_each_node_runs():
    nodes = [Node("me@a", 2), Node("b", 1)]
    first, second = node_commands("ssh", nodes, "a", 29500, ["r.yaml", "run.directory=a b"], ["ssh", "-p", "22"])
    assert first[:6] == ["ssh", "-p", "22", "-o", "BatchMode=yes", "me@a"]
    assert first[6].startswith(f"cd {ROOT} && exec env ")
    assert "-m launch.node --rank 0 --processes 2,1 --master a --port 29500 r.yaml 'run.directory=a b'" in first[6]
    assert "--rank 1 --processes 2,1 --master a " in second[6]
    (command,) = node_commands("srun", [Node("n1", 8), Node("n2", 8)], "n1", 29500, ["r.yaml"])
    assert command[:3] == ["srun", "--nodes", "2"] and "n1,n2" in command
    assert command[command.index("launch.node") + 1 :][:6] == [
        "--rank",
        "slurm",
        "--processes",
        "8,8",
        "--master",
        "n1",
    ]


# ---------------------------------------------------------------------------------------------- started and lost
@pytest.fixture
def start(tmp_path):
    """Starts two nodes of one process, on a run too long to end by itself; the output file, too."""
    recipe = make_recipe(tmp_path)
    started = []

    def begin(*settings, nodes=2):
        command = [sys.executable, "-m", "launch.start", "--nodes", str(nodes), "--processes", "1", str(recipe)]
        with (tmp_path / "output").open("w") as output:
            process = subprocess.Popen(
                [*command, f"run.directory={tmp_path / 'run'}", *settings], cwd=ROOT, stdout=output, stderr=output
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
    assert not left_behind(tmp_path)


def left_behind(tmp_path):
    """Processes of the run, wherever they hang."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(tmp_path / "run") in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def ranks_of(tmp_path):
    return [p for p in left_behind(tmp_path) if str(ROOT / "train.py") in p.cmdline() and "RANK" in p.environ()]


def wait_for_steps(tmp_path, process):
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.05)


def ended(tmp_path, process):
    """Exit code, seconds and what was said; nothing is left."""
    begun = time.monotonic()
    code = process.wait(timeout=60)
    assert not left_behind(tmp_path)
    return code, time.monotonic() - begun, (tmp_path / "output").read_text()


@pytest.mark.slow
def test_two_nodes_train_to_the_end_under_a_loud_banner(tmp_path, start):
    code, _, output = ended(tmp_path, start())
    assert code == 0, output
    assert "NO CLUSTER: 2 nodes are emulated" in output and "k-NN accuracy, trained backbone" in output


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_all_within_30_seconds_with_one_line(tmp_path, start, victim):
    process = start("run.epochs=2000")
    wait_for_steps(tmp_path, process)
    next(p for p in ranks_of(tmp_path) if p.environ()["RANK"] == str(victim)).kill()
    code, seconds, output = ended(tmp_path, process)
    assert code == 1 and seconds < 30, output
    last = output.strip().splitlines()[-1]
    assert last == f"swave: rank {victim} on {os.uname().nodename} died: killed, or crashed without a word"


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_launcher_that_is_killed_leaves_nothing_and_no_success(tmp_path, start, nodes):
    """DeepSpeed's own runner returns 0 then, and leaves the processes behind."""
    process = start("run.epochs=2000", nodes=nodes)
    wait_for_steps(tmp_path, process)
    launchers = [p for p in left_behind(tmp_path) if "deepspeed.launcher.launch" in p.cmdline()]
    assert len(launchers) == nodes
    launchers[-1].kill()
    code, seconds, output = ended(tmp_path, process)
    assert code == 1 and seconds < 30, output
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"swave: {os.uname().nodename}: the launcher ended before" if nodes == 1 else "swave: ")


@pytest.mark.slow
def test_a_signal_to_the_top_saves_on_all_nodes_and_ends_with_0(tmp_path, start):
    process = start("run.epochs=2000", "checkpoint.every=never")
    wait_for_steps(tmp_path, process)
    process.send_signal(signal.SIGUSR1)
    code, seconds, output = ended(tmp_path, process)
    assert code == 0 and seconds < 30, output
    assert "stopped by a signal, saved" in output
    assert (tmp_path / "run" / "checkpoints" / "latest").exists()


@pytest.mark.slow
def test_when_the_top_is_killed_everything_goes(tmp_path, start):
    process = start("run.epochs=2000")
    wait_for_steps(tmp_path, process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_behind(tmp_path)
