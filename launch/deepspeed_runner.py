"""LAUNCHER=pdsh and its like: DeepSpeed's own runner starts the nodes, for who has it set up.

Signals, exit codes and what happens when a process dies are then that runner's, not ours.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.machine import launch_environment
from config.recipe import ROOT, ConfigError
from launch.nodes import Node
from launch.remote_commands import address
from training.distributed import free_port

LAUNCHERS = ("pdsh", "openmpi", "mpich", "impi", "slurm", "mvapich")
KEPT = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "DS_LOG_LEVEL")


def hand_over(
    launcher: str, how: str, nodes: Sequence[Node], ssh: Sequence[str], settings: Sequence[str], dry: bool
) -> int:
    """Run DeepSpeed's runner on the nodes: a hostfile's, for slurm the allocation's; its exit code. Raises ConfigError
    where there are none."""
    if how != ("srun" if launcher == "slurm" else "ssh"):
        place = "runs inside a SLURM allocation" if launcher == "slurm" else "needs HOSTFILE=hosts"
        raise ConfigError(f"LAUNCHER={launcher} {place}")
    master, port = nodes[0].host if how == "srun" else address(ssh, nodes[0].host), free_port()
    if dry:
        print(f"DS_ENV_FILE=ENVIRONMENT {shlex.join(runner_command(launcher, Path('HOSTS'), master, port, settings))}")
        return 0
    with tempfile.TemporaryDirectory(prefix="swave-") as scratch:
        return run_there(launcher, nodes, master, port, settings, Path(scratch))


def run_there(
    launcher: str, nodes: Sequence[Node], master: str, port: int, settings: Sequence[str], folder: Path
) -> int:
    """Run it, with its hostfile and environment in `folder`; its exit code."""
    (folder / "hosts").write_text("".join(f"{node.host} slots={node.processes}\n" for node in nodes))
    kept = launch_environment(max(node.processes for node in nodes))
    # Where the processes meet: DeepSpeed's runners for openmpi, mvapich and slurm do not say it.
    told = {name: kept[name] for name in KEPT if name in kept} | {"MASTER_ADDR": master, "MASTER_PORT": str(port)}
    (folder / "environment").write_text("".join(f"{name}={value}\n" for name, value in told.items()))
    command = runner_command(launcher, folder / "hosts", master, port, settings)
    sys.stdout.flush()
    return subprocess.run(command, cwd=ROOT, env=kept | {"DS_ENV_FILE": str(folder / "environment")}).returncode


def runner_command(launcher: str, hostfile: Path, master: str, port: int, settings: Sequence[str]) -> list[str]:
    """DeepSpeed's command line."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--launcher", launcher),
        *("--master_addr", master, "--master_port", str(port)),
        *("--no_local_rank", str(ROOT / "train.py"), *settings),
    ]
