"""Two nodes, each emulated by a launcher on this machine: started, stopped, and lost in every way."""

import json
import os
import re
import subprocess
import sys
import time

import psutil
import pytest
from omegaconf import OmegaConf

import launch.start as start_module
from common import progress
from config.recipe import ROOT, ConfigError, load_config
from launch.nodes import Node
from launch.preflight import ask_nodes, find_problems
from launch.remote_commands import node_commands, node_program
from launch.restart import keep_batch, no_progress, restart_delay
from launch.start import choose_nodes
from launch.supervise import Outcome
from perf.kill_check import make_recipe
from support.programs import is_launcher, rank_of, run_module, wait_for_steps, words_of
from training.disk_space import checkpoint_gb, disk_gb, memory_gb

SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-4]"}


# ---------------------------------------------------------------------------------------------- choice, commands
def test_nodes_come_from_the_hostfile_else_from_slurm_else_are_emulated(tmp_path):
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


def test_the_command_of_each_node():
    nodes = [Node("me@a", 2), Node("b", 1)]
    program = node_program(nodes, "a", 29500, "a b", ["r.yaml", "run.directory=a b"])
    first, second = node_commands("ssh", nodes, program, ["ssh", "-p", "22"])
    assert first[:3] == ["ssh", "-p", "22"] and first[-2] == "me@a" and "BatchMode=yes" in first
    assert first[-1].startswith(f"cd {ROOT} && exec env ")
    there = (
        "-m launch.node --rank 0 --processes 2,1 --master a --port 29500 --directory 'a b' --program train.py r.yaml"
    )
    assert f"{there} 'run.directory=a b'" in first[-1]
    assert "--rank 1 --processes 2,1 --master a " in second[-1]
    nodes = [Node("n1", 8), Node("n2", 8)]
    (command,) = node_commands("srun", nodes, node_program(nodes, "n1", 29500, "d", ["r.yaml"]))
    assert command[0] == "env" and "srun --overlap --cpu-bind none --nodes 2" in " ".join(command)
    assert "n1,n2" in command and "--cpus-per-task" not in command
    assert "--rank slurm --processes 8,8 --master n1" in " ".join(command)


def test_a_given_number_of_processes_overrides_slurms():
    environment = SLURM | {"SLURM_NTASKS_PER_NODE": "1"}
    assert choose_nodes(2, 0, None, environment, 8)[1] == [Node("n1", 1), Node("n2", 1)]
    assert choose_nodes(2, 8, None, environment, 8)[1] == [Node("n1", 8), Node("n2", 8)]


def test_a_run_that_reports_no_end_is_a_failure(tmp_path, monkeypatch, capsys):
    config = load_config([str(make_recipe(tmp_path))])
    for ended, code in (("", 1), ("saved", 0), ("done", 0)):
        monkeypatch.setattr(start_module, "start_once", lambda *_, ended=ended: Outcome(ended=ended))
        assert start_module.run("local", [Node("localhost", 1)], [], config, []) == code
        assert ("process 0 did not report that the run is done or saved" in capsys.readouterr().err) is bool(code)


@pytest.mark.parametrize("places", [["HOSTFILE"], ["SLURM"]])
def test_a_dry_run_prints_the_commands(tmp_path, places, monkeypatch):
    (tmp_path / "hosts").write_text("me@10.0.0.1 slots=2\n10.0.0.2 slots=2\n")
    flags = ["--hostfile", str(tmp_path / "hosts")] if places == ["HOSTFILE"] else []
    for name, value in SLURM.items() if places == ["SLURM"] else ():
        monkeypatch.setenv(name, value)
    done = run_module("launch.start", "--nodes", "2", "--processes", "2", *flags, "--dry", make_recipe(tmp_path))
    assert done.returncode == 0, done.stderr
    reached = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert [line.split()[0] for line in reached] == (["ssh", "ssh"] if flags else ["env"])
    assert flags or " srun --overlap " in reached[0]
    assert done.stdout.count("-m launch.ranks") == 2 and "--node_rank 1" in done.stdout
    assert ("# me@10.0.0.1, 2 processes" if flags else "# n2, 2 processes") in done.stdout


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        (["--launcher", "impi"], [], "LAUNCHER=impi is unknown; give pdsh, openmpi, mpich, slurm, or leave it out"),
        (["--launcher", "openmpi"], [], "LAUNCHER=openmpi needs HOSTFILE=hosts"),
        (["--launcher", "slurm", "--hostfile", "HOSTS"], [], "LAUNCHER=slurm runs inside a SLURM allocation"),
        (
            ["--launcher", "pdsh", "--hostfile", "HOSTS"],
            ["launch.restarts=2"],
            "LAUNCHER=pdsh does not support launch.restarts and launch.elastic; leave one out",
        ),
    ],
)
def test_options_that_deepspeeds_runners_lack_are_an_error_of_one_line(tmp_path, flags, settings, message):
    (tmp_path / "hosts").write_text("10.0.0.1 slots=2\n10.0.0.2 slots=2\n")
    flags = [str(tmp_path / "hosts") if flag == "HOSTS" else flag for flag in flags]
    done = run_module("launch.start", "--nodes", "2", *flags, make_recipe(tmp_path), *settings)
    assert (done.returncode, done.stderr) == (2, f"swave: {message}\n")


def test_deepspeeds_runner_gets_the_masters_address_and_port(tmp_path):
    (tmp_path / "hosts").write_text("127.0.0.1 slots=2\n10.0.0.2 slots=2\n")
    places = ["--hostfile", tmp_path / "hosts", "--launcher", "pdsh"]
    done = run_module("launch.start", *places, "--dry", make_recipe(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "--launcher pdsh --master_addr 127.0.0.1 --master_port " in done.stdout


def test_the_batch_is_kept_on_fewer_nodes():
    four = [Node(f"n{i}", 8) for i in range(4)]
    assert keep_batch(four, 256, 8) == (four, 1)
    assert keep_batch(four[:3], 256, 8) == (four[:2], 2)  # 24 processes would not share 256 images
    assert keep_batch(four[:1], 256, 8) == (four[:1], 4)
    assert keep_batch([Node("a", 1), Node("b", 1), Node("c", 1)], 24, 6)[1] == 2  # 8 images, 4 at once
    with pytest.raises(ConfigError, match="does not split evenly over any of the 1 nodes that answer"):
        keep_batch([Node("a", 7)], 256, 8)


def test_a_restart_without_progress_is_the_last():
    assert not no_progress(None, 0) and not no_progress(5, 6)
    assert no_progress(5, 5) and no_progress(0, 0)
    assert [restart_delay(attempt, 5) for attempt in (1, 2, 3, 99)] == [5, 10, 20, 300]


FACTS = {
    "host": "a", "code": "c", "commit": "1", "lock": "l", "data": True, "free_gb": 9.0, "checkpoints": 0,
    "clock_off": 0.1, "gpus": ["H100"] * 8, "dataset": "ab",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": "x", "commit": "2"}, r"b: its code differs \(commit 2, here 1\); make sync"),
        ({"lock": "x"}, "b: .venv was made from another lock file; make setup there"),
        ({"lock": ""}, "b: .venv is not set up"),
        ({"data": False}, "b: data.path does not exist; use a shared file system, or make sync"),
        ({"free_gb": 0.5}, "b: 0.5 GB free at run.directory, but checkpoints of .* GB need 1; make room"),
        ({"clock_off": -60.0}, "b: its clock is -60 s off; set it"),
        ({"gpus": ["H100"] * 4}, "b: 4 GPUs for 8 processes"),
        ({"gpus": ["A100"] * 8}, r"b: its GPUs \(A100\) differ from those of a; take nodes of one kind"),
        ({"dataset": "e"}, r"b: its dataset \(e\) differs from that of a; make sync"),
        ({"dataset": "ba"}, r"b: its dataset \(ba\) differs from that of a; make sync"),  # the same characters as ab
        (
            {"error": "Connection refused"},
            r"b: no proper answer \(Connection refused\); does `ssh b true` work, without",
        ),
    ],
)
def test_a_problem_of_a_node_is_one_line_with_its_remedy(tmp_path, change, message):
    nodes, config = [Node("a", 8), Node("b", 8)], load_config([str(make_recipe(tmp_path))])
    assert find_problems([FACTS, FACTS], nodes, config, FACTS) == []
    (line,) = find_problems([FACTS, FACTS | change], nodes, config, FACTS)
    assert re.match(message, line), line


def test_the_disk_space_for_checkpoints_grows_with_the_network_and_the_number_kept(tmp_path):
    large = ["model.backbone=resnet50w4", "model.hidden_dim=8192", "model.options={}", "model.prototypes=3000"]
    config = load_config([str(make_recipe(tmp_path)), *large, "swav.queue.length=0", "checkpoint.keep=3"])
    one = checkpoint_gb(config)
    assert one == pytest.approx(8 * 0.4426, rel=0.001)  # 442.6 million parameters
    assert disk_gb(config, 0, one) == 4 * one and disk_gb(config, 2, one) == 2 * one and disk_gb(config, 9, one) == one
    config.run.epochs, config.checkpoint.keep_epochs = 400, 100
    assert disk_gb(config, 0, one) == 8 * one
    config.optimizer.name = "adamw"
    assert checkpoint_gb(config) == pytest.approx(1.5 * one)
    facts = FACTS | {"free_gb": 9.0}
    (line,) = find_problems([facts], [Node("a", 8)], config, FACTS)
    assert re.match(r"a: 9.0 GB free at run.directory, but checkpoints of 5.3 GB need 42; make room", line), line


def test_the_memory_of_a_method_is_part_of_each_checkpoint(tmp_path):
    settings = ["method=deepclusterv2", "model.embedding_dim=128", "swav.assigning=[0,1]", "swav.queue.length=0"]
    config = load_config([str(make_recipe(tmp_path)), *settings])
    images = 1_281_167
    assert memory_gb(config, images) == pytest.approx(images * (2 * 128 * 4 + 8 + 3 * 4) / 1e9)  # 1.3 GB
    config.checkpoint.keep, node = 3, Node("a", 8)
    facts = FACTS | {"free_gb": 4.0}
    assert find_problems([facts], [node], config, FACTS) == []
    (line,) = find_problems([facts | {"images": images}], [node], config, FACTS)
    assert re.match(r"a: 4.0 GB free at run.directory, but checkpoints of 1.3 GB need 5.4; make room", line), line
    config.method = "swav"
    assert memory_gb(config, images) == 0


def test_facts_of_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    config = load_config([str(make_recipe(tmp_path)), f"data.path={tmp_path}", f"run.directory={tmp_path / 'a' / 'b'}"])
    (facts,) = ask_nodes("local", [Node("here", 1)], [], config)
    assert facts["data"] and facts["free_gb"] > 0 and abs(facts["clock_off"]) < 1 and len(facts["code"]) == 12
    assert find_problems([facts], [Node("here", 1)], config) == []
    assert "waiting 60 s at most for answers: 100%" in capsys.readouterr().err


def test_answers_by_srun_are_assigned_to_their_nodes(tmp_path, monkeypatch):
    """Answers come in any order, and some nodes do not answer."""
    last = json.dumps({"node": 2, "time": time.time()})
    first = json.dumps({"node": 0, "time": time.time()})
    (tmp_path / "srun").write_text(
        f"#!/bin/sh\necho '{last}'; echo '{first}'; echo 'task 1: no such file' >&2; exit 1\n"
    )
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    nodes = [Node(name, 1) for name in "abc"]
    config = OmegaConf.create({"data": {"path": "d"}, "run": {"directory": "r"}})
    answers = ask_nodes("srun", nodes, [], config)
    assert [one.get("node", one.get("error")) for one in answers] == [0, "task 1: no such file", 2]
    (line,) = find_problems([FACTS, answers[1]], nodes[:2], load_config([str(make_recipe(tmp_path))]), FACTS, "srun")
    assert "b: no proper answer" in line and "`srun -w b true`" in line


# ---------------------------------------------------------------------------------------------- started and lost
@pytest.fixture
def start(tmp_path):
    """start(*settings, nodes=2): start a run on nodes of one process each; its output goes to tmp_path/output."""
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
    """All processes of the run on this machine."""
    processes = []
    for process in psutil.process_iter():
        try:
            if any(str(tmp_path / "run") in word for word in process.cmdline()):
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def ranks_of(tmp_path):
    """Rank -> its process."""
    return {rank: p for p in left_behind(tmp_path) if (rank := rank_of(p)) is not None}


def ended(tmp_path, process, longest=240):
    """Wait for the end: exit code, seconds and output. Fails if a process is left."""
    begun = time.monotonic()
    code = process.wait(timeout=longest)
    assert not left_behind(tmp_path)
    return code, time.monotonic() - begun, (tmp_path / "output").read_text()


def check_killed(tmp_path, victim, output):
    """Assert that one line names the killed rank, and that the other one, which waited, left its stacks."""
    assert f"swave: rank {victim} on {os.uname().nodename} died: killed, or crashed without a word" in output
    assert "Traceback" not in output  # that of the other rank is in its stacks
    stacks = tmp_path / "run" / "stacks" / f"rank-{1 - victim}.txt"
    assert "train.py" in stacks.read_text() and not stacks.with_name(f"rank-{victim}.txt").exists()


@pytest.mark.slow(seconds=25)
def test_two_nodes_whose_first_rank_is_killed_start_again_and_train_to_the_end_under_a_loud_banner(tmp_path, start):
    process = start("launch.restarts=2", "launch.backoff=0", "run.epochs=6")
    wait_for_steps(tmp_path / "run", 3, process, tmp_path / "output")
    ranks_of(tmp_path)[0].kill()
    code, _, output = ended(tmp_path, process)
    assert code == 0, output
    check_killed(tmp_path, 0, output)
    assert output.count("starting again in 0 seconds, 1 of launch.restarts=2") == 1
    assert "resuming from" in output and "k-NN accuracy, trained backbone" in output
    assert output.count("NO CLUSTER: 2 nodes are emulated") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ranks = [line["ranks"] for line in lines if "ranks" in line]
    assert ranks
    for times in ranks:
        assert len(times["data_wait"]) == len(times["forward"]) == 2 and min(times["forward"]) > 0
        own = [a + b for a, b in zip(times["data_wait"], times["forward"], strict=True)]
        assert times["spread"] == pytest.approx(max(own) - min(own), abs=1e-4)
        slowest = [f"rank {rank} on {os.uname().nodename}" for rank in range(2) if own[rank] > max(own) - 5e-5]
        assert times["slowest"] in slowest  # within the rounding of the figures


@pytest.mark.slow
def test_a_killed_rank_ends_all_within_30_seconds_with_one_line(tmp_path, start):
    process = start("run.epochs=2000")
    wait_for_steps(tmp_path / "run", 3, process, tmp_path / "output")
    ranks_of(tmp_path)[1].kill()
    code, seconds, output = ended(tmp_path, process)
    assert code == 1 and seconds < 120, output
    check_killed(tmp_path, 1, output)
    assert output.strip().splitlines()[-1].startswith("swave: ")


@pytest.mark.slow
def test_a_killed_launcher_is_a_failure_and_leaves_no_process(tmp_path, start):
    """With DeepSpeed's own runner the exit code is 0 and the processes stay."""
    process = start("run.epochs=2000", nodes=1)
    wait_for_steps(tmp_path / "run", 3, process, tmp_path / "output")
    (launcher,) = [p for p in left_behind(tmp_path) if is_launcher(p)]
    launcher.kill()
    code, seconds, output = ended(tmp_path, process)
    assert code == 1 and seconds < 120, output
    assert f"swave: {os.uname().nodename}: the launcher ended before" in output
    assert output.strip().splitlines()[-1].startswith("swave: ")


@pytest.mark.slow
def test_a_killed_supervisor_is_a_failure_and_leaves_no_process(tmp_path, start):
    process = start("run.epochs=2000", nodes=1)
    wait_for_steps(tmp_path / "run", 3, process, tmp_path / "output")
    next(p for p in left_behind(tmp_path) if "launch.node" in words_of(p)).kill()
    code = process.wait(timeout=120)
    deadline = time.monotonic() + 120
    while left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert code == 1 and not left_behind(tmp_path), (tmp_path / "output").read_text()


@pytest.mark.slow
def test_a_run_that_fails_twice_at_the_same_step_is_not_started_again(tmp_path, start):
    process = start("launch.restarts=9", "launch.backoff=0", "optimizer.base_lr=1e30", "run.epochs=2000", nodes=1)
    code, _, output = ended(tmp_path, process)
    assert code == 1
    assert output.count("starting again") == 1 and "not started again" in output
    assert "the loss is not finite" in output


@pytest.mark.slow
def test_a_killed_start_program_leaves_no_process(tmp_path, start):
    process = start("run.epochs=2000", nodes=1)
    wait_for_steps(tmp_path / "run", 3, process, tmp_path / "output")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_behind(tmp_path)
    assert "Traceback" not in (tmp_path / "output").read_text()
