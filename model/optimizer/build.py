"""The optimizer that a recipe's `optimizer:` section names."""

from __future__ import annotations

from typing import Any

from torch import nn

from model.optimizer.adamw import AdamW, adamw_groups
from model.optimizer.lars import LARS, parameter_groups


def build_optimizer(settings: Any, network: nn.Module) -> LARS | AdamW:
    """LARS or AdamW over the network's parameters, with the prototypes in the last group. Raises ValueError."""
    if settings.name == "adamw":
        return AdamW(
            adamw_groups(network, settings.layer_decay),
            lr=settings.base_lr,
            betas=tuple(settings.betas),
            weight_decay=settings.weight_decay,
        )
    return LARS(
        parameter_groups(network, exclude_1d=settings.exclude_1d),
        lr=settings.base_lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        trust_coefficient=settings.trust_coefficient,
    )


def set_step(optimizer: LARS | AdamW, learning_rate: float, frozen_prototypes: bool) -> None:
    """Before a step, set the learning rate of the schedule for all groups, and freeze or release the prototypes."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        if group["unit_rows"]:
            group["frozen"] = frozen_prototypes
