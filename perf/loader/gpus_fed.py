"""How many GPUs a loader's rate can feed, given the rate at which one GPU trains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.gpu_check.verdict import best_rate

HOW = "give --gpu-rate IMAGES_PER_SECOND, or --step-json with a report of `python -m perf.step` from a GPU"
FED = {  # (backend, mode) -> name, for those whose crops a training can use
    ("ffcv", "full"): "ffcv",
    ("ffcv-affine", "full"): "ffcv-affine",
    ("ffcv", "crops"): "ffcv, color and blur on the GPU",
    ("dali", "full"): "dali",
    ("dali-random", "full"): "dali-random",
    ("torchvision", "full"): "torchvision",
}


def gpu_rate(given: float | None, step: Path | None, results: Path, usual: bool) -> dict[str, Any]:
    """Images a second that one GPU trains on: {"images_per_second", "from"}, or {"why"} with the reason for no rate.

    given: the user's rate, used first. step: a report of perf.step, used next. results: folder with gpu-*.json of `make
    gpu-check`, used last and only if `usual`: they are for a ResNet-50 with the paper's crops. Raises ValueError if
    `step` cannot be read.
    """
    if given is not None:
        return {"images_per_second": given, "from": "--gpu-rate"}
    if step is not None:
        return _of_step(step)
    if not usual:
        return {"why": f"the measured GPU rates are for other crops; {HOW}"}
    reports = [(json.loads(path.read_text()), path.name) for path in sorted(results.glob("gpu-*.json"))]
    rates = [(best_rate(report), report["device"], name) for report, name in reports if best_rate(report)]
    if not rates:
        return {"why": f"there is no measured GPU rate; {HOW}"}
    rate, device, name = max(rates)
    return {"images_per_second": rate, "from": f"{device}, ResNet-50, {name}"}


def _of_step(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
        rate, ranks, device = float(report["images_per_second"]), int(report["ranks"]), str(report["device"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"--step-json={path}: not a report of perf.step ({reason})") from None
    if device.lower().startswith("cpu"):
        return {"why": f"{path.name} was measured on a CPU; {HOW}"}
    return {"images_per_second": rate / max(1, ranks), "from": f"{device}, {path.name}"}


def gpus_fed(results: Sequence[Mapping[str, Any]], rate: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """For each backend {"rate_needed": images/s of a GPU, "gpus": how many its rate feeds}; {} without a GPU rate."""
    needed = rate.get("images_per_second")
    if not needed:
        return {}
    return {
        FED[key]: {"rate_needed": round(needed, 1), "gpus": round(result["images_per_second"] / needed, 2)}
        for result in results
        for key in [(result["backend"], result["mode"])]
        if key in FED
    }
