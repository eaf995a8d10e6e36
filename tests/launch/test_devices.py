"""The user's list of devices is honored: on this machine, with a hostfile, under SLURM and in Kubernetes."""

import json
import os
import subprocess

import pytest

from config.recipe import ROOT, ConfigError
from launch.deepspeed_runner import run_with_deepspeed
from launch.node import check_devices, launch_command
from launch.nodes import Node
from launch.remote_commands import node_commands
from launch.start import choose_nodes
from launch.start import main as start
from training.distributed import cluster_from_environment, device_index

MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
PROGRAM = """
import json, os, sys
line = json.dumps([os.environ["LOCAL_RANK"], os.environ["CUDA_VISIBLE_DEVICES"]])
sys.stdout.write(line + "\\n")  # at once: other ranks write there too
"""


def launched(local_rank, processes, nodes=1):
    """What DeepSpeed's launcher gives a rank of the last node."""
    rank = (nodes - 1) * processes + local_rank
    numbers = {"RANK": rank, "WORLD_SIZE": nodes * processes, "LOCAL_RANK": local_rank, "LOCAL_SIZE": processes}
    return {name: str(number) for name, number in numbers.items()} | MASTER


def slurm(local_rank, processes):
    """What srun gives a task."""
    numbers = {"SLURM_PROCID": 8 + local_rank, "SLURM_NTASKS": 16, "SLURM_LOCALID": local_rank, "SLURM_NODEID": 1}
    return {name: str(number) for name, number in numbers.items()} | {
        "SLURM_STEP_TASKS_PER_NODE": f"8,{processes}",
        **MASTER,
    }


@pytest.mark.parametrize(
    ("environment", "visible", "index"),
    [
        ({}, 1, 0),  # plain python
        ({}, 8, 0),
        (launched(1, 2), 2, 1),  # CUDA_VISIBLE_DEVICES=2,3 on this machine: the second of the two
        (launched(1, 2), 8, 1),
        (launched(3, 4, nodes=2), 4, 3),  # a hostfile with slots=4
        (launched(1, 2), 1, 0),  # MIG: each rank sees its own alone
        (slurm(3, 8), 8, 3),  # SLURM: --gpus-per-node=8
        (slurm(3, 8), 1, 0),  # --gpus-per-task=1: cuda:3 would be an invalid ordinal
        (launched(7, 8, nodes=3), 8, 7),  # a pod of Kubernetes, which holds the GPUs of its limit
    ],
)
def test_an_environment_gives_a_device(environment, visible, index):
    cluster = cluster_from_environment(environment)
    assert device_index(cluster.local_rank, cluster.local_world_size, visible) == index


@pytest.mark.slow(seconds=5)
def test_each_rank_of_a_launched_script_sees_its_own_of_the_devices_that_the_user_chose(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-8932f937,MIG-1a2b3c4d")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = launch_command([2], 0, "127.0.0.1", 29512, [str(tmp_path / "program.py")])
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "DS_LOG_LEVEL": "error"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ranks = sorted(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert ranks == [["0", "MIG-8932f937"], ["1", "MIG-1a2b3c4d"]]


def test_nodes_that_ssh_reaches_get_the_list(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    commands = node_commands("ssh", [Node("a", 2), Node("b", 2)], ["launch.node"])
    assert ["exec env CUDA_VISIBLE_DEVICES=2,3 " in command[-1] for command in commands] == [True, True]


def test_names_of_one_machines_devices_are_refused_for_several(tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=2\nb slots=2\n")
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES=GPU-1a names devices of one machine, and .* lists 2"):
        choose_nodes(0, 0, hostfile, {"CUDA_VISIBLE_DEVICES": "GPU-1a"}, 1)
    assert choose_nodes(1, 0, hostfile, {"CUDA_VISIBLE_DEVICES": "GPU-1a"}, 1)[1] == [Node("a", 2)]
    assert len(choose_nodes(0, 0, hostfile, {"CUDA_VISIBLE_DEVICES": "2,3"}, 2)[1]) == 2


def test_more_processes_than_visible_gpus_are_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ConfigError, match=r"2 processes on a machine that shows 1 GPU \(CUDA_VISIBLE_DEVICES=3\)"):
        check_devices(2, 1)
    check_devices(2, 0)  # on the CPU
    check_devices(1, 8)


def test_a_start_with_more_processes_than_gpus_ends_before_anything_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nfor i in 0 1 2 3; do echo NVIDIA H100; done\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(SystemExit, match="2"):
        start(["--processes", "4", str(ROOT / "config" / "demo.yaml")])
    assert capsys.readouterr().err == (
        "swave: 4 processes on a machine that shows 2 GPUs (CUDA_VISIBLE_DEVICES=2,3); give GPUS=2, or fewer slots\n"
    )


def test_deepspeeds_runner_refuses_a_list_that_it_would_replace(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(ConfigError, match="LAUNCHER=pdsh takes the first GPUs of each node"):
        run_with_deepspeed("pdsh", "ssh", [Node("a", 2)], ["ssh"], ["config/demo.yaml"], dry=True)
