"""The verdict on a step: what bounds it, in one sentence, and the settings that would change it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LOADER, GRADIENTS, CODES, OPTIMIZER, BATCH_NORM = (
    0.10,
    0.15,
    0.05,
    0.15,
    0.15,
)  # shares of a step above which each is reported


def verdict(profile: Mapping[str, Any], settings: Mapping[str, Any], roofline: Mapping[str, Any] | None = None) -> str:
    """What bounds a step, in one sentence.

    profile: shares, slow, collectives, step_ms of `training.profiling.profile.summary`. settings: of
    `training.profiling.profile.settings_of`. roofline: `bound` ("memory bandwidth" or "matrix products") and
    `share_of_roofline`, where they were measured.
    """
    shares, slow = profile["shares"], profile.get("slow")
    if slow is not None and slow["own_ms"] > 1.2 * slow["others_ms"]:
        return (
            f"bound by a slow rank: rank {slow['rank']} on {slow['host']} takes {slow['own_ms']:.1f} ms of own time "
            f"a step, the others take {slow['others_ms']:.1f}, most of it in {slow['phase']}; look at that "
            "machine's load, or leave it out"
        )
    batch_norm = sum(row["ms"] for row in profile["collectives"] if row["kind"] == "batch_norm") / profile["step_ms"]
    candidates = {
        "data_wait": shares["data_wait"] / LOADER,
        "gradient_communication": shares["gradient_communication"] / GRADIENTS,
        "codes": shares["codes"] / CODES,
        "optimizer": shares["optimizer"] / OPTIMIZER,
        "batch_norm": batch_norm / BATCH_NORM,
    }
    worst = max(candidates, key=lambda name: candidates[name])
    if candidates[worst] <= 1:
        return _compute(shares, settings, roofline)
    if worst == "data_wait":
        return _loader(shares["data_wait"], settings)
    if worst == "gradient_communication":
        return _gradients(shares["gradient_communication"], settings)
    if worst == "codes":
        return (
            f"bound by the codes: {shares['codes']:.0%} of each step, waiting for other ranks included; a "
            f"run.batch_size of more than {settings['batch']} makes them rarer"
        )
    if worst == "batch_norm":
        return (
            f"bound by batch norm's collectives: {batch_norm:.0%} of each step; a smaller engine.sync_batch_norm than "
            f"{settings['sync_batch_norm'] or settings['ranks']} would shrink them"
        )
    return (
        f"bound by the optimizer: {shares['optimizer']:.0%} of each step; a larger run.batch_size than "
        f"{settings['batch']} makes it rarer"
    )


def _loader(share: float, settings: Mapping[str, Any]) -> str:
    """Advice for a slow loader: more threads, as far as there are cores, or another backend."""
    waits = "the GPU waits" if settings["device"] == "cuda" else "the network waits"
    threads = settings["threads"]
    needed, available = math.ceil(threads / max(1 - share, 0.01)), settings["cores"] // settings["local_ranks"]
    remedies = [f"pipeline.threads={needed}"] if threads < needed <= available else []
    if settings["backend"] != "ffcv":
        remedies.append("pipeline.backend=ffcv")
    sentence = f"loader-bound: {waits} {share:.0%} of each step"
    if remedies:
        return f"{sentence}; {' or '.join(remedies)} would hide it"
    if threads < available:
        return f"{sentence}; pipeline.threads={available} would hide some of it"
    return (
        f"{sentence}, and all cores are busy; packed images (make convert), fewer crops.local.count or more cores help"
    )


def _gradients(share: float, settings: Mapping[str, Any]) -> str:
    sentence = f"bound by gradient communication: {share:.0%} of each step is waiting for it"
    if settings["device"] == "cuda" and settings["stage"] == 0:
        return f"{sentence}; engine.stage=1 hides it behind backward"
    if settings["stage"] == 3:
        return f"{sentence}; engine.stage=1 gathers no weights, where memory allows it"
    batch = settings["batch"]
    return f"{sentence}; run.batch_size={2 * batch} with engine.accumulation={2 * settings['accumulation']} halves it"


def _compute(shares: Mapping[str, float], settings: Mapping[str, Any], roofline: Mapping[str, Any] | None) -> str:
    network, teacher = shares["forward_global"] + shares["forward_local"] + shares["backward"], shares["teacher"]
    share = f"{network:.0%} of each step" + f", the teacher {teacher:.0%}" * (teacher > 0)
    sentence = f"bound by the network: forward and backward are {share}"
    if roofline is None:
        return f"{sentence}, and the loader keeps up"
    reached = roofline["share_of_roofline"]
    sentence = f"bound by {roofline['bound']}: the network's forward and backward are {share}, and it "
    sentence += f"runs at {reached:.0%} of what the device's {roofline['bound']} would allow"
    on_gpu = settings["device"] == "cuda"
    if on_gpu and settings["precision"] == "fp32":
        return f"{sentence}; engine.precision=bf16 moves half the bytes"
    if on_gpu and not settings["compile"] and reached < 0.7:
        return f"{sentence}; engine.compile=true fuses what moves them"
    return sentence
