"""Starting a run: the rank in the environment, the commands, signals, and the ranks' agreement on losses and stops."""

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from config.recipe import ROOT, ConfigError
from launch.node import launch_command
from support.forks import context, run_processes
from support.photos import flat_colors, write_folder
from support.programs import is_launcher, run_module
from support.ranks import run_ranks
from training.distributed import Cluster, cluster_from_environment, connected, device_index, free_port
from training.step_agreement import Agreement
from training.stopping import STOPPED_EARLY

PORT = {"MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Cluster(0, 1, 0, 1)),
        (  # deepspeed
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "MASTER_ADDR": "a", **PORT},
            Cluster(5, 8, 1, 4),
        ),
        (  # torchrun
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a", **PORT},
            Cluster(5, 8, 1, 4),
        ),
        (  # mpirun of OpenMPI
            {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
            | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "MASTER_ADDR": "a", **PORT},
            Cluster(5, 8, 1, 4),
        ),
        (  # srun
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "MASTER_ADDR": "a", **PORT},
            Cluster(3, 4, 1, 4),
        ),
        (
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "MASTER_ADDR": "a"}
            | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", **PORT},
            Cluster(3, 5, 1, 2),
        ),
        ({"SLURM_NTASKS": "4"}, Cluster(0, 1, 0, 1)),  # the shell of a batch script is not a task
    ],
)
def test_the_usual_environments_give_rank_and_world_size(environment, expected):
    assert cluster_from_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        ({"RANK": "two"}, "RANK=two in the environment is not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", **PORT}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 but MASTER_ADDR is not set"),
    ],
)
def test_an_environment_that_contradicts_itself_is_one_line(environment, message):
    with pytest.raises(ConfigError, match=message):
        cluster_from_environment(environment)


@pytest.mark.parametrize(
    ("local_rank", "local_world_size", "visible", "index"),
    [
        (0, 1, 1, 0),
        (0, 1, 8, 0),
        (3, 8, 8, 3),
        (1, 2, 8, 1),
        (3, 4, 1, 0),  # SLURM's --gpus-per-task=1: each rank sees its own GPU alone
    ],
)
def test_each_rank_has_its_own_device(local_rank, local_world_size, visible, index):
    assert device_index(local_rank, local_world_size, visible) == index


def test_more_ranks_than_devices_are_one_line():
    with pytest.raises(ConfigError, match="4 processes on this machine see 2 GPUs; start one process for each GPU"):
        device_index(3, 4, 2)


def world_of(command):
    """What deepspeed's launcher is given: the devices of each node."""
    return json.loads(base64.urlsafe_b64decode(command[command.index("--world_info") + 1]))


def test_on_a_node_the_launcher_is_deepspeed(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = ["train.py", "config/demo.yaml", "run.epochs=1"]
    command = launch_command([2, 1, 1, 2], 3, "node0", 29501, program)
    assert command[1:3] == ["-m", "launch.ranks"]
    assert [len(devices) for devices in world_of(command).values()] == [2, 1, 1, 2]
    given = dict(itertools.pairwise(command))
    assert given["--node_rank"] == "3" and given["--master_addr"] == "node0" and given["--master_port"] == "29501"
    assert command[-3:] == program


def test_the_launcher_gets_the_devices_that_the_user_chose(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert world_of(launch_command([2], 0, "127.0.0.1", 29501, ["train.py"])) == {"node0": ["2", "3"]}


def test_dry_prints_the_command_and_starts_nothing():
    done = run_module("launch.start", "--dry", "--processes", "2", "config/demo.yaml", "run.batch_size=64", folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert "-m launch.node --rank 0 --processes 2 --master 127.0.0.1" in done.stdout


def test_processes_that_the_batch_does_not_split_over_are_refused():
    done = run_module("launch.start", "--processes", "3", "config/demo.yaml", "run.batch_size=64", folder=ROOT)
    assert (done.returncode, done.stderr) == (2, "swave: run.batch_size=64 does not split over 3 processes\n")


def start(tmp_path, *settings):
    """Start launch.start on 2 processes."""
    command = [sys.executable, "-m", "launch.start", "--processes", "2", "config/demo.yaml"]
    return subprocess.Popen(
        [*command, f"run.directory={tmp_path / 'run'}", f"data.cache={tmp_path}", *settings],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_signal_while_the_images_are_scanned_ends_with_one_line_and_0(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(noise).save(tmp_path / "images" / "0.png")
    for index in range(1, 400):
        os.link(tmp_path / "images" / "0.png", tmp_path / "images" / f"{index}.png")
    process = start(tmp_path, f"data.path={tmp_path / 'images'}")
    wait_for(lambda: list(tmp_path.glob("*.lock")), process)  # the scan has begun
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and f"\nswave: {STOPPED_EARLY}\n" in output, output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_before_the_processes_are_there_reaches_them_all(tmp_path):
    write_folder(tmp_path / "images", flat_colors(300, side=20))
    process = start(tmp_path, f"data.path={tmp_path / 'images'}")
    wait_for(lambda: launcher_of(process.pid), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert STOPPED_EARLY in output or "the same command resumes" in output
    assert not (tmp_path / "run" / "summary.json").exists()


def launcher_of(pid):
    return [child for child in psutil.Process(pid).children(recursive=True) if is_launcher(child)]


def wait_for(condition, process):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None and not condition():
        time.sleep(0.005)
    assert process.poll() is None


def last_collectives(rank, port):
    """A rank that ends right after collectives, while its process group outlives `connected` as with DeepSpeed."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    with connected(Cluster(rank, 2, rank, 2)):
        sys.kept = torch.distributed.group.WORLD
        for work in [torch.distributed.all_reduce(torch.ones(300_000), async_op=True) for _ in range(30)]:
            work.wait()


@pytest.mark.slow
def test_ranks_end_with_0_right_after_a_collective():
    """Without `wait_for_gloo` 21 of 50 processes ended with code -6."""
    for _ in range(4):
        port = free_port()
        run_processes(last_collectives, [(rank, port) for rank in range(2)])


def waits_of_groups(rank):
    """Timeouts in seconds of groups that other code, such as DeepSpeed, creates."""
    with connected(Cluster(), timeout=7.0):
        groups = [None, torch.distributed.new_group(), torch.distributed.new_group(backend="gloo")]
        groups = [torch.distributed.group.WORLD if group is None else group for group in groups]
        return [g._get_backend(torch.device("cpu")).options._timeout.total_seconds() for g in groups]


def test_every_group_of_processes_gives_up_after_the_timeout():
    with context().Pool(1) as pool:
        assert pool.map(waits_of_groups, [0]) == [[7.0, 7.0, 7.0]]


def agreements(rank):
    """The agreements of seven steps that exchange losses every second step. Rank 1 has a loss that is not finite in
    step 3 and receives a signal in step 5."""
    agreement, heard, stops = Agreement(world_size=2, device="cpu", every=2), [], []
    for step in range(1, 8):
        loss = torch.tensor(float("nan") if (step, rank) == (3, 1) else float(step + rank))
        heard.append(agreement.exchange(step, loss, stop=(step, rank) == (5, 1)))
        stops.append(agreement.stop)
    heard += [agreement.settle(), agreement.settle()]
    return [None if one is None else (one.step, str(one.loss), one.bad_step, one.bad_ranks) for one in heard], stops


def test_ranks_agree_on_losses_and_signals_one_step_later():
    for heard, stops in run_ranks([0, 1], agreements):
        assert [one[0] if one else None for one in heard] == [None, None, 2, None, 4, None, 6, 7, None]
        assert heard[2] == (2, "2.5", None, 0)
        assert heard[4] == (4, "4.5", 3, 1)  # steps between two exchanges count too
        assert heard[6:8] == [(6, "6.5", None, 0), (7, "7.5", None, 0)]
        assert stops == [False] * 5 + [True] * 2  # stays set although no rank asks for it any more
