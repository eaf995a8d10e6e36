"""What this machine has for training processes: GPUs, and the environment that shares its cores out."""

from __future__ import annotations

import os
import subprocess


def launch_environment(processes: int) -> dict[str, str]:
    """The environment of `processes` here: cores shared out evenly, DeepSpeed on the CPU where there is no GPU. What is
    set already stays."""
    cores = len(os.sched_getaffinity(0))
    environment = {"OMP_NUM_THREADS": str(max(1, cores // processes)), "DS_LOG_LEVEL": "warning"}
    if not visible_gpus():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment | dict(os.environ)


def visible_gpus() -> int:
    """CUDA GPUs that a process started from here would see, without importing torch."""
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    found = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else min(found, len([name for name in visible.split(",") if name.strip()]))
