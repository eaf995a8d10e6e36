"""DeepSpeed, configured from the recipe: stage 0 in fp32, behind the few calls that train.py shows."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from config.recipe import ConfigError


def quiet_deepspeed() -> Any:
    """The deepspeed module, with its running commentary turned down, and nothing compiled at start.

    On CPUs DeepSpeed compiles a shared-memory all-reduce of its own, under a lock file that a killed start leaves
    behind: every later start then waits for ever. gloo does the same work, so the extension counts as incompatible.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found"
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(config: DictConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own configuration. Raises ConfigError for keys that are ours to set."""
    extra = OmegaConf.to_container(config.engine.deepspeed)
    assert isinstance(extra, dict)
    ours = {
        "train_batch_size": config.run.batch_size,
        "train_micro_batch_size_per_gpu": config.run.batch_size // world_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # DeepSpeed's default is 1.0 by now; SwAV does not clip
        "zero_optimization": {"stage": 0},
    }
    taken = sorted(set(extra) & set(ours))
    if taken:
        raise ConfigError(f"engine.deepspeed.{taken[0]} is set by the recipe (run.batch_size, stage 0), leave it out")
    return {"steps_per_print": 2**31 - 1, **extra, **ours}


def build_engine(
    config: DictConfig, network: torch.nn.Module, optimizer: torch.optim.Optimizer, world_size: int
) -> Any:
    """The DeepSpeed engine around `network`: call it for a forward, then `.backward(loss)` and `.step()`.

    Parameters are rank 0's from here on. Our optimizer is used as it is; the loader is ours too.
    """
    engine, *_ = quiet_deepspeed().initialize(
        model=network, optimizer=optimizer, config=deepspeed_config(config, world_size)
    )
    return engine
