"""The commands that reach the nodes, by ssh or srun, and start a program on them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from config.recipe import ROOT, ConfigError
from launch.nodes import Node

FORWARDED_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "TORCH_DISTRIBUTED_DEBUG",
)
# ssh notices a host that disappears after 12 seconds, and one that never answers after 10.
SSH_OPTIONS = ("ServerAliveInterval=4", "ServerAliveCountMax=3", "ConnectTimeout=10", "BatchMode=yes")

# We start one task per node, which gets all resources that the job has there: settings per task are removed. --overlap
# shares the resources with the job step that this program may itself run in.
PER_TASK = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_EXACT",
            "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND", "SLURM_HINT", "SLURM_THREADS_PER_CORE")  # fmt: skip
SRUN = ("env", *(word for name in PER_TASK for word in ("-u", name)), "srun", "--overlap", "--cpu-bind", "none")


def address(ssh: Sequence[str], host: str) -> str:
    """The address that ssh's configuration gives for a host of the hostfile. Raises ConfigError if ssh fails."""
    try:
        settings = subprocess.run([*ssh, "-G", host], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{shlex.join(ssh)} -G {host} failed ({type(error).__name__}); is ssh installed?") from None
    return next(line.split()[1] for line in settings.splitlines() if line.startswith("hostname "))


def node_commands(
    how: str, nodes: Sequence[Node], program: Sequence[str], ssh: Sequence[str] = ("ssh",)
) -> list[list[str]]:
    """The commands that run `program` on every node: one command per node, with srun a single one for all.

    program: a Python module and its arguments; "{rank}" stands for the node's number. how: "local", "ssh" or "srun".
    """

    def python_command(rank: str) -> list[str]:
        python = sys.executable if how == "local" else str(ROOT / ".venv" / "bin" / "python")
        return [python, "-m", *(word.replace("{rank}", rank) for word in program)]

    if how == "local":
        return [python_command(str(rank)) for rank in range(len(nodes))]
    if how == "ssh":
        prefix = f"cd {shlex.quote(str(ROOT))} && exec env "
        variables = [f"{name}={os.environ[name]}" for name in FORWARDED_VARIABLES if name in os.environ]
        options = [word for option in SSH_OPTIONS for word in ("-o", option)]
        return [
            [*ssh, *options, node.host, prefix + shlex.join([*variables, *python_command(str(rank))])]
            for rank, node in enumerate(nodes)
        ]
    names = ",".join(node.host for node in nodes)
    tasks = ["--nodes", str(len(nodes)), "--ntasks", str(len(nodes)), "--ntasks-per-node", "1", "--nodelist", names]
    return [[*SRUN, *tasks, "--chdir", str(ROOT), "--kill-on-bad-exit=1", *python_command("slurm")]]


def node_program(
    nodes: Sequence[Node], master: str, port: int, directory: str, settings: Sequence[str], program: str = "train.py"
) -> list[str]:
    """`launch.node` and its arguments, for `node_commands`. directory: the run's, where stacks are written."""
    counts = ",".join(str(node.processes) for node in nodes)
    options = ["--rank", "{rank}", "--processes", counts, "--master", master, "--port", str(port)]
    return ["launch.node", *options, "--directory", directory, "--program", program, *settings]
