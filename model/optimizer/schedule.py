"""The learning rate of every iteration as one table (SwAV, appendix A: linear warm-up, then cosine)."""

from typing import Any

import numpy as np
from jaxtyping import Float


def warmup_cosine(
    steps_per_epoch: int,
    epochs: float,
    warmup_epochs: float,
    start_lr: float,
    base_lr: float,
    final_lr: float,
) -> Float[np.ndarray, " steps"]:
    """Learning rate of each of the round(steps_per_epoch * epochs) iterations, float64.

    The warm-up is linear from `start_lr` to `base_lr`, both included. The cosine starts at `base_lr` and would reach
    `final_lr` one iteration after the last.

    Raises ValueError if the warm-up is longer than the training.
    """
    steps, warmup = round(steps_per_epoch * epochs), round(steps_per_epoch * warmup_epochs)
    if not 0 <= warmup <= steps:
        raise ValueError(f"a warm-up of {warmup_epochs} epochs does not fit into {epochs} epochs")
    progress = np.arange(steps - warmup) / max(steps - warmup, 1)
    cosine = final_lr + 0.5 * (base_lr - final_lr) * (1 + np.cos(np.pi * progress))
    # A rounding must not take it beyond its ends: that may be infinity.
    cosine = np.clip(cosine, min(base_lr, final_lr), max(base_lr, final_lr))
    return np.concatenate([np.linspace(start_lr, base_lr, warmup), cosine])


def learning_rates_of(settings: Any, steps: int, epochs: int) -> Float[np.ndarray, " steps"]:
    """`warmup_cosine` with the settings of a recipe's `optimizer:` section. steps: per epoch."""
    rates = settings.start_lr, settings.base_lr, settings.final_lr
    return warmup_cosine(steps, epochs, settings.warmup_epochs, *rates)
