"""Machine, versions and date of a measurement: part of every JSON file that `perf/` writes."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.machine import gpu_names
from common.versions import versions


def machine(cores: Sequence[int] | None = None) -> dict[str, Any]:
    """The facts about this machine: cpu, cores, cache, gpus, os, python, versions and date.

    "cores": how many are used, the length of `cores` or all that this process may use. "cache": bytes of the last cache
    level of the first core, which other cores may share; None if Linux does not report it.
    """
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0) if cores is None else cores),
        "cache": _last_level_cache(),
        "gpus": gpu_names(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _last_level_cache() -> int | None:
    levels = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return 1024 * int(levels[-1].read_text().strip().removesuffix("K")) if levels else None
