"""`make train NODES=4 HOSTFILE=...` on hosts with separate addresses, names and sshds: trained, cut off, killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from config.recipe import ROOT
from perf.kill_check import make_recipe
from support.forks import Script
from support.nodes.host_runs import Run, loader_state, losses
from support.programs import is_launcher

pytestmark = pytest.mark.slow(seconds=15)
THREE = ("run.batch_size=12", "swav.queue.length=0")  # for three processes, over which 8 images do not split
ALL_SYNCHRONIZED = "engine.sync_batch_norm=0"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a recipe and of a run of one process, an epoch long, with the same batches."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = make_recipe(folder)
    arguments = [recipe, f"run.directory={folder}/alone", "run.epochs=1", ALL_SYNCHRONIZED]
    process = Script(ROOT / "train.py", map(str, arguments), folder / "output")
    assert process.wait(timeout=120) == 0, process.output.read_text()
    return folder


def check_steps(run, alone, count):
    """Assert that a run on `count` hosts has taken the steps of the one process, whose folder is `alone`."""
    expected = losses(alone / "alone")
    assert sorted(run.losses) == sorted(expected) and len(expected) >= 5
    for step in range(1, 6):
        assert run.losses[step] == pytest.approx(expected[step], abs=1e-4)
    assert loader_state(run.directory) == loader_state(alone / "alone")
    ranks = [
        json.loads(line)["ranks"]
        for line in (run.directory / "metrics.jsonl").read_text().splitlines()
        if "ranks" in line
    ]
    assert all(times["slowest"] in {f"rank {i} on host{i + 1}" for i in range(count)} for times in ranks)


def test_two_runs_at_once_take_the_steps_of_one_process_on_the_same_batches(make_hosts, alone, tmp_path):
    """On four and on two of four hosts, two milliseconds apart. They do not disturb each other."""
    shutil.copy(alone / "tiny.yaml", tmp_path)
    with make_hosts(4, delay=0.002) as hosts:
        counts = {"four": 4, "two": 2}
        runs = [Run(hosts, tmp_path, name, "run.epochs=1", ALL_SYNCHRONIZED, nodes=n) for name, n in counts.items()]
        assert [run.end() for run in runs] == [0, 0], runs[0].output + runs[1].output
    for run, count in zip(runs, counts.values(), strict=True):
        check_steps(run, alone, count)


def test_a_cut_link_ends_all_and_the_restart_resumes_and_a_signal_saves(make_hosts, tmp_path):
    with make_hosts(2) as hosts:
        run = Run(hosts, tmp_path, "cut", "run.epochs=5000", "launch.restarts=1", nodes=2)
        run.steps(3)
        hosts.cut(1)
        noticed = run.wait_for(lambda run: "starting again" in run.output, 240)
        assert noticed < 30, run.output
        assert "host2" in run.output
        assert run.gone([1]) < 30 - min(noticed, 20)  # the process on the host that is cut off ends by itself
        hosts.join(1)
        run.wait_for(lambda run: "resuming from" in run.output)
        again = max(run.losses)
        run.wait_for(lambda run: max(run.losses) > again + 2)
        run.top().send_signal(signal.SIGTERM)
        assert run.end(240) == 0, run.output
        assert "stopped by a signal, saved" in run.output


def test_the_others_go_on_without_a_killed_host(make_hosts, tmp_path):
    with make_hosts(3) as hosts:
        elastic = ["launch.restarts=1", "launch.backoff=0", "launch.elastic=true"]
        run = Run(hosts, tmp_path, "elastic", "run.epochs=4", *THREE, *elastic, nodes=3)
        run.steps(3)
        hosts.kill(2)
        assert run.end() == 0, run.output
        assert "going on with host1, host2; engine.accumulation=2" in run.output
        assert "k-NN accuracy, trained backbone" in run.output


def test_a_killed_launcher_on_a_host_is_a_failure_and_leaves_no_process(make_hosts, tmp_path):
    with make_hosts(2) as hosts:
        run = Run(hosts, tmp_path, "launcher", "run.epochs=5000", nodes=2)
        run.steps(3)
        launcher = next(pid for pid, _ in run.left_on(1) if is_launcher(psutil.Process(pid)))
        os.kill(launcher, signal.SIGKILL)
        begun = time.monotonic()
        assert run.end(240) != 0
        assert time.monotonic() - begun < 120
        assert "host2" in run.output


@pytest.mark.parametrize("victim", ["launch.node", "launch.start"])
def test_a_killed_supervisor_or_start_program_leaves_no_process_on_any_host(make_hosts, tmp_path, victim):
    with make_hosts(2) as hosts:
        place = 1 if victim == "launch.node" else 0
        run = Run(hosts, tmp_path, "killed", "run.epochs=5000", nodes=place + 1)
        run.steps(3)
        for pid in [pid for pid, command in run.left_on(place) if victim in command and "ssh" not in command[0]]:
            os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        assert run.end(240) != 0
        assert time.monotonic() - begun < 120
        assert victim == "launch.start" or "host2" in run.output


def test_a_hang_ends_all_hosts_with_the_stacks_of_every_rank(make_hosts, tmp_path):
    with make_hosts(2) as hosts:
        run = Run(hosts, tmp_path, "hang", "run.epochs=5000", "launch.timeout=5", nodes=2)
        run.steps(3)
        stopped = run.rank_on(1)
        os.kill(stopped, signal.SIGSTOP)
        begun = time.monotonic()
        run.wait_for(lambda run: run.rank_on(0) is None, 120)
        os.kill(stopped, signal.SIGCONT)
        assert run.end(240) != 0
        assert time.monotonic() - begun < 120
        (line,) = [line for line in run.output.splitlines() if line.startswith("swave: rank ")]
        assert re.match(r"swave: rank 0 on host1 died: .*(Timed out|Application timeout)", line), run.output
        for rank in range(2):
            assert "train.py" in (run.directory / "stacks" / f"rank-{rank}.txt").read_text()


def test_other_code_on_one_host_is_refused_before_the_start(make_hosts, tmp_path):
    changed = tmp_path / "train.py"
    changed.write_text(Path(ROOT / "train.py").read_text() + "# another version\n")
    with make_hosts(2, binds={1: {changed: ROOT / "train.py"}}) as hosts:
        run = Run(hosts, tmp_path, "other", nodes=2)
        assert run.end() == 2
        assert re.search(r"swave: host2: its code differs \(commit .*make sync", run.output), run.output
        assert not run.directory.exists()


def test_torchrun_elastic_starts_it_too(make_hosts, tmp_path):
    recipe = make_recipe(tmp_path)
    directory, agents, outputs = tmp_path / "torchrun", [], [tmp_path / "agent0", tmp_path / "agent1"]
    places = "--nnodes=1:2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=host1:29400 --max-restarts=2".split()
    command = [sys.executable, "-m", "torch.distributed.run", *places, str(ROOT / "train.py"), str(recipe)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with make_hosts(2) as hosts:
        for index in range(2):
            with outputs[index].open("w") as output:
                started = [*command, f"run.directory={directory}", "run.epochs=1"]
                agents.append(hosts.run(index, started, cwd=ROOT, env=environment, stdout=output, stderr=output))
        assert [agent.wait(timeout=120) for agent in agents] == [0, 0], outputs[0].read_text()
    assert json.loads((directory / "summary.json").read_text())["world_size"] == 2


@pytest.mark.parametrize(
    ("launcher", "program"), [("pdsh", "pdsh"), ("openmpi", "mpirun.openmpi"), ("mpich", "mpirun.mpich")]
)
def test_deepspeeds_runners_start_it_if_they_are_installed(make_hosts, tmp_path, monkeypatch, launcher, program):
    if not shutil.which(program):
        pytest.skip(f"no {program} here (Debian: {launcher if launcher != 'openmpi' else 'openmpi-bin'})")
    (tmp_path / "bin").mkdir()
    if program != "pdsh":  # two packages have an mpirun
        (tmp_path / "bin" / "mpirun").write_text(f'#!/bin/sh\nexec {shutil.which(program)} "$@"\n')
        (tmp_path / "bin" / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    with make_hosts(2) as hosts:
        make_recipe(tmp_path)
        run = Run(hosts, tmp_path, launcher, "run.epochs=1", nodes=2, variables=[f"LAUNCHER={launcher}"])
        assert run.end() == 0, run.output
        assert "k-NN accuracy, trained backbone" in run.output
        assert json.loads((run.directory / "summary.json").read_text())["world_size"] == 2


@pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync here (Debian: rsync)")
def test_make_sync_brings_code_and_images_to_hosts_that_have_neither(make_hosts, tmp_path):
    """Each host has a separate disk for checkout and images. .venv, which is large, is a link to this checkout's."""
    checkout, images = tmp_path / "checkout", tmp_path / "images"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    (checkout / ".venv").symlink_to(os.path.realpath(ROOT / ".venv"))
    make_recipe(tmp_path)  # with its images
    binds = {}
    for index in (1, 2):
        binds[index] = {tmp_path / f"disk{index}" / path.name: path for path in (checkout, images)}
        for own in binds[index]:
            own.mkdir(parents=True)
    with make_hosts(3, binds=binds) as hosts:

        def train(name, nodes=3):
            return Run(hosts, tmp_path, name, "run.epochs=1", *THREE, nodes=nodes, checkout=checkout)

        def sync():
            command = ["make", "sync", f"HOSTFILE={tmp_path}/hosts", f"DATA={images}"]
            done = hosts.run(0, command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            output = done.communicate(timeout=120)[0]
            assert done.returncode == 0, output
            sent = re.findall(r"^(host[23]): ([\d,]+) files, [\d.]+ MB sent in", output, re.MULTILINE)
            return {host: int(files.replace(",", "")) for host, files in sent}

        before = train("before")
        assert before.end() == 2 and re.search("swave: host2: no proper answer", before.output)
        files = sync()
        assert set(files) == {"host2", "host3"} and min(files.values()) > 150
        with (checkout / "train.py").open("a") as program:
            program.write("# another version\n")
        other = train("other")
        assert other.end() == 2 and re.search("swave: host2: its code differs .*make sync HOSTFILE", other.output)
        assert sync() == dict.fromkeys(files, 1)
        after = train("after", nodes=2)
        assert after.end() == 0, after.output
        assert json.loads((after.directory / "summary.json").read_text())["world_size"] == 2


def test_the_cluster_check_reports_its_results(make_hosts, tmp_path):
    with make_hosts(2) as hosts:
        make_recipe(tmp_path)
        (tmp_path / "hosts").write_text("host1 slots=1\nhost2 slots=1\n")
        command = ["make", "cluster-check", f"HOSTFILE={tmp_path}/hosts", f"CONFIG={tmp_path}/tiny.yaml"]
        for cut in (False, True):
            if cut:
                hosts.cut(1)
            done = hosts.run(0, command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            output = done.communicate(timeout=120)[0]
            assert (done.returncode == 0) is not cut, output
            part = r"wrong: host2: no proper answer" if cut else r"all-reduce over 2 processes: [\d.]+ ms for 8 bytes"
            assert re.search(part, output), output
