"""One rank of perf.memory: three steps of a real network, and the peak memory of the process in the third.

The figure is resident memory above that after three steps of a tiny network, and so without libraries. It includes the
activations; two images of 32 pixels a rank keep them small.
"""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from config.recipe import default_config
from perf.loader.gpu_feed_memory import forget_peak, resident

SIZE, IMAGES = 32, 2  # pixels of a crop; images a rank
TINY = {"backbone": "resnet18", "options": {"base_width": 8}, "hidden_dim": 16, "embedding_dim": 8, "prototypes": 16}


@dataclass(frozen=True)
class Case:
    """A network in training: `model` as in a recipe, with an `optimizer`, at a ZeRO `stage` on `ranks` processes."""

    name: str
    model: dict[str, Any] = field(hash=False)
    optimizer: str
    stage: int
    ranks: int
    precision: str = "fp32"


def run_rank(rank: int, case: Case, folder: Path) -> None:
    """Run rank `rank` of the case; writes `folder`/RANK.json with "peak" of the third step and "after" it, in MB."""
    from training.distributed import Cluster, connected

    if case.precision == "fp16":  # DeepSpeed refuses it on CPUs, although torch computes it
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True
    cluster = Cluster(rank, case.ranks, rank, case.ranks)
    with connected(cluster):
        three_steps(replace(case, model=TINY), cluster)
        gc.collect()
        before = resident("VmRSS")
        engine = three_steps(case, cluster)
        memory = {"peak": resident("VmHWM") - before, "after": resident("VmRSS") - before}
        del engine
        (folder / f"{rank}.json").write_text(json.dumps(memory))


def three_steps(case: Case, cluster: Any) -> Any:
    """Train for three steps and reset the peak of memory before each; returns the engine."""
    from model.optimizer.build import build_optimizer, set_step
    from training.build import build_network, build_objective
    from training.deepspeed_engine import build_engine, input_dtype

    config = config_of(case)
    objective = build_objective(config)
    network = build_network(config.model)
    optimizer = build_optimizer(config.optimizer, network)
    engine = build_engine(config, network, optimizer, cluster, torch.device("cpu"))
    set_step(optimizer, 0.01, frozen_prototypes=False)
    for _ in range(3):
        forget_peak()
        crops = torch.randn(2 * IMAGES, 3, SIZE, SIZE).to(input_dtype(config))
        _, scores, _, _ = engine([crops], IMAGES, None)
        codes = objective.codes(objective.of_assigning(scores))
        engine.backward(objective.loss(codes, scores))
        engine.step()
        del crops, scores, codes
    return engine


def config_of(case: Case) -> Any:
    """The settings of a case, all others at their defaults."""
    # this loss scale does not overflow; a skipped step would take less memory
    low_scale = {"deepspeed": {"fp16": {"initial_scale_power": 4}}} if case.precision == "fp16" else {}
    changes: dict[str, Any] = {
        "run": {"batch_size": IMAGES * case.ranks},
        "model": {"heads": 1} | case.model,
        "optimizer": {"name": case.optimizer, "base_lr": 0.01, "backbone_lr_scale": 1.0},
        "engine": {"stage": case.stage, "precision": case.precision, "sync_batch_norm": 1} | low_scale,
    }
    return OmegaConf.merge(default_config(), changes)
