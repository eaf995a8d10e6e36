"""The optimizer that a recipe's `optimizer:` section names."""

from __future__ import annotations

from typing import Any

from torch import nn

from model.optimizer.adamw import AdamW
from model.optimizer.groups import parameter_groups
from model.optimizer.lars import LARS
from model.optimizer.muon import Muon


def build_optimizer(settings: Any, network: nn.Module, freezes_backbone: bool = False) -> LARS | AdamW:
    """LARS, AdamW or Muon over the network's parameters, with the prototypes in the last group. Raises ValueError.

    freezes_backbone: `set_step` will freeze the backbone, which therefore has groups of its own.
    """
    lars, muon = settings.name == "lars", settings.name == "muon"
    groups = parameter_groups(
        network,
        exclude_1d=not lars or settings.exclude_1d,
        layer_decay=settings.layer_decay,
        backbone_scale=settings.backbone_lr_scale,
        backbone_apart=freezes_backbone,
        matrices_apart=muon,
    )
    if not lars:
        betas, own = tuple(settings.betas), {"momentum": settings.muon_momentum} if muon else {}
        kind = Muon if muon else AdamW
        return kind(groups, lr=settings.base_lr, betas=betas, weight_decay=settings.weight_decay, **own)
    return LARS(
        groups,
        lr=settings.base_lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        trust_coefficient=settings.trust_coefficient,
    )


def set_step(
    optimizer: LARS | AdamW, learning_rate: float, frozen_prototypes: bool, frozen_backbone: bool = False
) -> None:
    """Before a step, set the learning rate of the schedule for all groups, and freeze or release prototypes and
    backbone."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        if group["unit_rows"] or group["backbone"]:
            group["frozen"] = frozen_prototypes if group["unit_rows"] else frozen_backbone
