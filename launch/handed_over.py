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

from config.recipe import ROOT, ConfigError
from launch.machine import launch_environment
from launch.nodes import Node

LAUNCHERS = ("pdsh", "openmpi", "mpich", "impi", "slurm", "mvapich")


def hand_over(launcher: str, how: str, nodes: Sequence[Node], settings: Sequence[str], dry: bool) -> int:
    """Run DeepSpeed's runner on the hostfile's nodes. Raises ConfigError without a hostfile or that runner."""
    if how != "ssh":
        raise ConfigError(f"LAUNCHER={launcher} needs HOSTFILE=hosts")
    if dry:
        print(f"DS_ENV_FILE=ENVIRONMENT {shlex.join(runner_command(launcher, Path('HOSTS'), settings))}")
        return 0
    with tempfile.TemporaryDirectory(prefix="swave-") as scratch:
        return run_there(launcher, nodes, settings, Path(scratch))


def run_there(launcher: str, nodes: Sequence[Node], settings: Sequence[str], folder: Path) -> int:
    """Run it, with its hostfile and environment in `folder`; its exit code."""
    (folder / "hosts").write_text("".join(f"{node.host} slots={node.processes}\n" for node in nodes))
    kept = launch_environment(max(node.processes for node in nodes))
    names = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "DS_LOG_LEVEL")
    (folder / "environment").write_text("".join(f"{name}={kept[name]}\n" for name in names if name in kept))
    command = runner_command(launcher, folder / "hosts", settings)
    sys.stdout.flush()
    return subprocess.run(command, cwd=ROOT, env=kept | {"DS_ENV_FILE": str(folder / "environment")}).returncode


def runner_command(launcher: str, hostfile: Path, settings: Sequence[str]) -> list[str]:
    """DeepSpeed's command line."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--launcher", launcher),
        *("--no_local_rank", str(ROOT / "train.py"), *settings),
    ]
