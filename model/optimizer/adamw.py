"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) for vision transformers, with prototypes as SwAV needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model.optimizer.lars import parameter_groups
from model.optimizer.segments import Layout


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose groups may carry the flags `frozen` and `unit_rows` of LARS (model/optimizer/lars.py).

    It works element by element, so slices of parameters are as good as whole ones; `layout` serves `unit_rows` alone.
    """

    def __init__(self, params: list[dict[str, Any]], **settings: Any) -> None:
        flags = {"frozen": False, "unit_rows": False, "lr_scale": 1.0}
        super().__init__([{**flags, **group} for group in params], foreach=True, **settings)
        self.layout: Layout | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all groups that are not frozen. Returns what `closure` returns, if one is given."""
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
    """Groups for AdamW: no decay for biases and norms, the prototypes last and of unit rows.

    layer_decay: below 1, a group for each layer of the backbone, which must be timm's: the learning rate of a block is
    `layer_decay` times that of the one after it ("lr_scale", to be multiplied in by the training loop; Clark et al.,
    arXiv 2003.10555). Raises ValueError where the backbone says nothing of its layers.
    """
    groups = parameter_groups(network, exclude_1d=True)
    if layer_decay == 1:
        return groups
    backbone = network.get_submodule("backbone")
    if not hasattr(backbone, "group_matcher"):
        raise ValueError(
            "optimizer.layer_decay needs a backbone of timm, which says which layers it has; leave it at 1"
        )
    from timm.optim import param_groups_layer_decay

    layers = param_groups_layer_decay(backbone, weight_decay=0.05, layer_decay=layer_decay)
    below = [
        {"params": group["params"], "lr_scale": group["lr_scale"]}
        | ({} if group["weight_decay"] else {"weight_decay": 0.0})
        for group in layers
    ]
    placed = {p for group in below for p in group["params"]}
    rest = [group | {"params": [p for p in group["params"] if p not in placed]} for group in groups]
    return below + [group for group in rest if group["params"]]
