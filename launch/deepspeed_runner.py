"""LAUNCHER=pdsh, openmpi, mpich or slurm: DeepSpeed's own runner starts the nodes, for clusters that are set up for it.

That runner then decides about signals, exit codes and what follows when a process dies.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.machine import devices_of_processes, launch_environment
from config.recipe import ROOT, ConfigError
from launch.nodes import Node
from launch.remote_commands import address
from training.distributed import free_port

LAUNCHERS = ("pdsh", "openmpi", "mpich", "slurm")
FORWARDED_VARIABLES = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "DS_LOG_LEVEL")


def check_launcher(launcher: str) -> None:
    """Raises ConfigError if DeepSpeed's runner of this name is not supported."""
    if launcher not in LAUNCHERS:
        raise ConfigError(f"LAUNCHER={launcher} is unknown; give {', '.join(LAUNCHERS)}, or leave it out")


def run_with_deepspeed(
    launcher: str, how: str, nodes: Sequence[Node], ssh: Sequence[str], settings: Sequence[str], dry: bool
) -> int:
    """Run DeepSpeed's runner on the nodes of a hostfile, or with slurm of the allocation; its exit code. dry: print the
    command only. Raises ConfigError without such nodes, and where the user has chosen other devices than the first."""
    if how != ("srun" if launcher == "slurm" else "ssh"):
        need = "runs inside a SLURM allocation" if launcher == "slurm" else "needs HOSTFILE=hosts"
        raise ConfigError(f"LAUNCHER={launcher} {need}")
    processes = max(node.processes for node in nodes)
    if how == "ssh" and devices_of_processes(processes, os.environ) != devices_of_processes(processes, {}):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}: LAUNCHER={launcher} takes the first GPUs of "
            "each node; leave out one of the two"
        )
    master, port = nodes[0].host if how == "srun" else address(ssh, nodes[0].host), free_port()
    if dry:
        print(f"DS_ENV_FILE=ENVIRONMENT {shlex.join(runner_command(launcher, Path('HOSTS'), master, port, settings))}")
        return 0
    with tempfile.TemporaryDirectory(prefix="swave-") as scratch:
        return _run(launcher, nodes, master, port, settings, Path(scratch))


def _run(launcher: str, nodes: Sequence[Node], master: str, port: int, settings: Sequence[str], folder: Path) -> int:
    """Run it with its hostfile and environment in `folder`; the exit code."""
    (folder / "hosts").write_text("".join(f"{node.host} slots={node.processes}\n" for node in nodes))
    environment = launch_environment(max(node.processes for node in nodes))
    forwarded = {name: environment[name] for name in FORWARDED_VARIABLES if name in environment}
    forwarded |= {"MASTER_ADDR": master, "MASTER_PORT": str(port)}  # DeepSpeed omits them with openmpi and slurm
    (folder / "environment").write_text("".join(f"{name}={value}\n" for name, value in forwarded.items()))
    command = runner_command(launcher, folder / "hosts", master, port, settings)
    sys.stdout.flush()
    return subprocess.run(command, cwd=ROOT, env=environment | {"DS_ENV_FILE": str(folder / "environment")}).returncode


def runner_command(launcher: str, hostfile: Path, master: str, port: int, settings: Sequence[str]) -> list[str]:
    """The command line of DeepSpeed's runner."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--launcher", launcher),
        *("--master_addr", master, "--master_port", str(port)),
        *("--no_local_rank", str(ROOT / "train.py"), *settings),
    ]
