"""What this machine must have for some faults; a fault that lacks it is a skipped row with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

MEMORY_GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # cgroup v1, v2


@cache
def lacking(need: str) -> str:
    """Why this machine cannot have the fault, in a few words; "" if it can."""
    return NEEDS[need]() if need else ""


def _root() -> str:
    return "" if os.geteuid() == 0 and shutil.which("mount") else "needs root, to mount a small disk"


def _hosts() -> str:
    from perf.virtual_cluster.hosts import missing

    return missing() or ""


def _memory_group() -> str:
    return "" if memory_group() else "needs root and a memory cgroup that can be made"


NEEDS: dict[str, Callable[[], str]] = {
    "root": _root,
    "hosts": _hosts,
    "memory group": _memory_group,
}


def memory_group() -> Path | None:
    """The cgroup folder in which groups with a memory limit can be made; None without one."""
    for folder in MEMORY_GROUPS:
        limit = "memory.limit_in_bytes" if folder.name == "memory" else "memory.max"
        trial = folder / f"swave-faults-{os.getpid()}"
        try:
            trial.mkdir()
        except OSError:
            continue
        possible = (trial / limit).exists()
        trial.rmdir()
        if possible:
            return folder
    return None
