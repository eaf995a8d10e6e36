"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) for vision transformers, with the prototypes of SwAV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from model.optimizer.segments import Layout


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the group options `frozen`, `unit_rows`, `lr_scale` and `backbone` of LARS
    (model/optimizer/lars.py).

    AdamW works element by element, so it needs no whole parameters; only `unit_rows` uses `layout`.
    """

    def __init__(self, params: list[dict[str, Any]], **settings: Any) -> None:
        options = {"frozen": False, "unit_rows": False, "lr_scale": 1.0, "backbone": False, "orthogonal": False}
        super().__init__([{**options, **group} for group in params], foreach=True, **settings)
        self.layout: Layout | None = None

    # Without their decorator, as in LARS.
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all groups that are neither frozen nor `orthogonal`, which Muon updates. Returns the result of
        `closure`, if given."""
        layout = self.layout = self.layout or Layout.of_whole(self.param_groups)
        groups = self.param_groups
        self.param_groups = [group for group in groups if not (group["frozen"] or group["orthogonal"])]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for index, group in enumerate(groups):
            if group["unit_rows"] and not group["frozen"]:
                tensors = [p for p in group["params"] if p.grad is not None]
                layout.unit_rows_(tensors, layout.groups[index])
        return loss
