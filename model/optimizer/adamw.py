"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) for vision transformers, with the prototypes of SwAV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model.optimizer.lars import parameter_groups
from model.optimizer.segments import Layout


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the group options `frozen`, `unit_rows` and `lr_scale` of LARS (model/optimizer/lars.py).

    AdamW works element by element, so it needs no whole parameters; only `unit_rows` uses `layout`.
    """

    def __init__(self, params: list[dict[str, Any]], **settings: Any) -> None:
        options = {"frozen": False, "unit_rows": False, "lr_scale": 1.0}
        super().__init__([{**options, **group} for group in params], foreach=True, **settings)
        self.layout: Layout | None = None

    # Without their decorator, as in LARS.
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all groups that are not frozen. Returns the result of `closure`, if given."""
        layout = self.layout = self.layout or Layout.of_whole(self.param_groups)
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["frozen"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for index, group in enumerate(groups):
            if group["unit_rows"] and not group["frozen"]:
                tensors = [p for p in group["params"] if p.grad is not None]
                layout.unit_rows_(tensors, layout.groups[index])
        return loss


def adamw_groups(network: nn.Module, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups for AdamW: biases and norms without decay, the prototypes last and with unit rows.

    layer_decay: below 1, every layer of the backbone, which must be timm's, becomes a group, and the learning rate of a
    block is `layer_decay` times that of the next one ("lr_scale", which the training loop applies; Clark et al., arXiv
    2003.10555). Raises ValueError if the backbone does not list its layers.
    """
    groups = parameter_groups(network, exclude_1d=True)
    if layer_decay == 1:
        return groups
    backbone = network.get_submodule("backbone")
    if not hasattr(backbone, "group_matcher"):
        raise ValueError("optimizer.layer_decay needs a backbone of timm that lists its layers; leave it at 1")
    from timm.optim import param_groups_layer_decay

    layers = param_groups_layer_decay(backbone, weight_decay=0.05, layer_decay=layer_decay)
    backbone_groups = [
        {"params": group["params"], "lr_scale": group["lr_scale"]}
        | ({} if group["weight_decay"] else {"weight_decay": 0.0})
        for group in layers
    ]
    in_backbone = {p for group in backbone_groups for p in group["params"]}
    others = [group | {"params": [p for p in group["params"] if p not in in_backbone]} for group in groups]
    return backbone_groups + [group for group in others if group["params"]]
