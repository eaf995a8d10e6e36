"""How many GPUs a loader's rate keeps busy, where it is known how many images a second a GPU trains on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOW = "give --gpu-rate IMAGES_PER_SECOND, or --step-json with what `python -m perf.step` wrote on a GPU"
FED = {  # (backend, mode) -> name: whose crops can be trained on
    ("ffcv", "full"): "ffcv",
    ("ffcv-affine", "full"): "ffcv-affine",
    ("ffcv", "crops"): "ffcv, color and blur on the GPU",
    ("dali", "full"): "dali",
    ("dali-random", "full"): "dali-random",
    ("torchvision", "full"): "torchvision",
}


def gpu_rate(given: float | None, step: Path | None, results: Path, usual: bool) -> dict[str, Any]:
    """Images a second that one GPU trains on: {"images_per_second", "from"}, or {"why": what is missing}.

    given: by the user; step: a JSON of perf.step; results: folder with gpu-*.json of `make gpu-check`, whose network is
    ResNet-50 with the paper's crops, and which count only for the `usual` crops. Raises ValueError for a `step` that
    cannot be read.
    """
    if given is not None:
        return {"images_per_second": given, "from": "--gpu-rate"}
    if step is not None:
        return _of_step(step)
    if not usual:
        return {"why": f"the crops are not those that other figures were measured with; {HOW}"}
    best = [(json.loads(path.read_text()), path.name) for path in sorted(results.glob("gpu-*.json"))]
    rates = [
        (found["step"]["best"], found["device"], name) for found, name in best if found.get("step", {}).get("best")
    ]
    if not rates:
        return {"why": f"no GPU was measured; {HOW}"}
    rate, device, name = max(rates)
    return {"images_per_second": rate, "from": f"{device}, ResNet-50, {name}"}


def _of_step(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        rate, ranks, device = float(found["images_per_second"]), int(found["ranks"]), str(found["device"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"--step-json={path}: not what perf.step writes ({told})") from None
    if device.lower().startswith("cpu"):
        return {"why": f"{path.name} was measured on a CPU; {HOW}"}
    return {"images_per_second": rate / max(1, ranks), "from": f"{device}, {path.name}"}


def gpus_fed(results: Sequence[Mapping[str, Any]], rate: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Backend -> {"rate_needed": images/s of a GPU, "gpus": how many its rate feeds}; {} without a rate."""
    needed = rate.get("images_per_second")
    if not needed:
        return {}
    return {
        FED[key]: {"rate_needed": round(needed, 1), "gpus": round(result["images_per_second"] / needed, 2)}
        for result in results
        for key in [(result["backend"], result["mode"])]
        if key in FED
    }
