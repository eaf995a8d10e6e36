"""The commands that reach the nodes and start what runs on them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from config.recipe import ROOT, ConfigError
from launch.nodes import Node

PASSED_ON = ("OMP_NUM_THREADS", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TORCH_DISTRIBUTED_DEBUG")
# A host that is gone without a word is noticed after 12 seconds; one that does not answer at all after 10.
PATIENCE = ("ServerAliveInterval=4", "ServerAliveCountMax=3", "ConnectTimeout=10", "BatchMode=yes")

# Our one task a node gets all that the job has there, whatever each task of the job itself would get, and shares it
# with the step that we may stand in.
PER_TASK = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_EXACT",
            "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND", "SLURM_HINT", "SLURM_THREADS_PER_CORE")  # fmt: skip
SRUN = ("env", *(word for name in PER_TASK for word in ("-u", name)), "srun", "--overlap", "--cpu-bind", "none")


def address(ssh: Sequence[str], host: str) -> str:
    """What ssh connects to for a name of the hostfile, by its own configuration. Raises ConfigError without an ssh."""
    try:
        told = subprocess.run([*ssh, "-G", host], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{shlex.join(ssh)} -G {host} failed ({type(error).__name__}); is ssh installed?") from None
    return next(line.split()[1] for line in told.splitlines() if line.startswith("hostname "))


def on_each_node(
    how: str, nodes: Sequence[Node], program: Sequence[str], ssh: Sequence[str] = ("ssh",)
) -> list[list[str]]:
    """The commands that run `program` (a Python module and its arguments, "{rank}" for the node's number) on every
    node: one a node, for srun one in all. how: "local", "ssh" or "srun"."""

    def of(rank: str) -> list[str]:
        python = sys.executable if how == "local" else str(ROOT / ".venv" / "bin" / "python")
        return [python, "-m", *(word.replace("{rank}", rank) for word in program)]

    if how == "local":
        return [of(str(rank)) for rank in range(len(nodes))]
    if how == "ssh":
        there = f"cd {shlex.quote(str(ROOT))} && exec env "
        kept = [f"{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
        options = [word for option in PATIENCE for word in ("-o", option)]
        return [
            [*ssh, *options, node.host, there + shlex.join([*kept, *of(str(rank))])] for rank, node in enumerate(nodes)
        ]
    names = ",".join(node.host for node in nodes)
    spread = ["--nodes", str(len(nodes)), "--ntasks", str(len(nodes)), "--ntasks-per-node", "1", "--nodelist", names]
    return [[*SRUN, *spread, "--chdir", str(ROOT), "--kill-on-bad-exit=1", *of("slurm")]]


def node_program(
    nodes: Sequence[Node], master: str, port: int, directory: str, settings: Sequence[str], program: str = "train.py"
) -> list[str]:
    """`launch.node` as the program of `on_each_node`. directory: of the run, for stacks."""
    counts = ",".join(str(node.processes) for node in nodes)
    place = ["--rank", "{rank}", "--processes", counts, "--master", master, "--port", str(port)]
    return ["launch.node", *place, "--directory", directory, "--program", program, *settings]
