"""LARS as in SwAV (appendix A; You et al., arXiv 1708.03888): the variant LARC without clipping.

    scale = trust * |p| / (|g| + weight_decay * |p| + eps)
    v <- momentum * v + scale * (g + weight_decay * p)
    p <- p - lr * v

for every parameter p with gradient g, including biases and norms. If |p| or |g| is zero, scale is 1 without decay.
As in the published code the trust ratio scales the input of the momentum, not its output, so a change of the learning
rate acts at once.

The norms are those of whole parameters, even if ZeRO gives the optimizer only slices of them (see segments.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.optimizer.segments import Layout, in_memory_order

ROW = 1024  # a CPU adds up the squares of this many elements in float32
LONG = 32768  # elements from which on this is faster than float64 at once
SMALLEST = 1e-11  # of a norm whose squares of float32 are all accurate enough: those below 1e-38 are lost


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive SGD with momentum, for float32 or float64. The host never waits for the device.

    params: parameters or groups of them; `groups.parameter_groups` makes the groups for a SwAV network.
    lr: learning rate; the training loop sets "lr" of each group before every step.
    momentum, weight_decay, trust_coefficient, eps: as above.

    Options of a group, which may change between steps:
    trust_ratio (True): False is plain SGD with momentum and the group's weight decay.
    unit_rows (False): `step` L2-normalizes the rows of its parameters after the update. This changes the float32
        masters too, which would otherwise undo the normalization.
    frozen (False): `step` skips the group: no update, momentum, decay or normalization.
    lr_scale (1): the training loop sets "lr" to the schedule's learning rate times this.
    backbone (False): the training loop freezes the group with the backbone.

    layout: the parameters in the groups' tensors; None means that each tensor is a parameter.

    Tensors without a gradient are skipped. State per tensor: "momentum_buffer".
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "trust_ratio": True,
            "unit_rows": False,
            "frozen": False,
            "lr_scale": 1.0,
            "backbone": False,
        }
        super().__init__(params, defaults)
        self.layout: Layout | None = None
        self._squares, self._dtype = torch.empty(2, 0, dtype=torch.float64), torch.float32
        self._kernels: Any = None  # once they are known to run, or False

    # Without their decorator, which imports torch._dynamo: two seconds, for engine.compile alone.
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all groups that are not frozen. Returns the result of `closure`, if given.

        With partitioned parameters: one all-reduce for all norms, and one for the rows of `unit_rows`. On a CUDA device
        float32 tensors are updated by the kernels of model/optimizer/lars_fused.py.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        layout = self.layout = self.layout or Layout.of_whole(self.param_groups)
        active = [
            (index, group, [p for p in group["params"] if p.grad is not None])
            for index, group in enumerate(self.param_groups)
            if not group["frozen"]
        ]
        tensors = [p for _, _, members in active for p in members]
        momenta = [self._momentum(p) for p in tensors]
        self._dtype = tensors[0].dtype if tensors else self._dtype
        if tensors and (kernels := self._fused(tensors, momenta)):
            self._squares = kernels(active, layout, momenta)
        else:
            self._squares = _squared_norms(tensors, layout)
            for index, group, members in active:
                if members:
                    self._update(group, members, layout, *self._factors(index))
        for index, group, members in active:
            if group["unit_rows"]:
                layout.unit_rows_(members, layout.groups[index])
        return loss

    @property
    def trust_ratios(self) -> Float[Tensor, " parameters"]:
        """Of the last step, for the parameters of the layout; 1 for parameters without one."""
        ratios = torch.ones_like(self._squares[0], dtype=self._dtype)
        for index, group in enumerate(self.param_groups if self.layout else []):
            if group["trust_ratio"] and not group["frozen"]:
                assert self.layout is not None
                members = self.layout.members(index)
                ratios[members] = self._factors(index)[0][members]
        return ratios

    def _factors(self, index: int) -> tuple[Float[Tensor, " parameters"], Float[Tensor, " parameters"]]:
        """Factors of gradient and parameter for the parameters of a group; those of the others mean nothing."""
        group = self.param_groups[index]
        norms = self._squares.sqrt()  # float64, which holds every product below
        rounded = norms.to(self._dtype).double()  # the digits beyond depend on how ZeRO cuts the sums
        parameter_norms, gradient_norms = torch.where(rounded.isfinite() & (rounded > 0), rounded, norms).unbind()
        scales, decays = torch.ones_like(parameter_norms), torch.full_like(parameter_norms, group["weight_decay"])
        if group["trust_ratio"]:
            settings = group["weight_decay"], group["trust_coefficient"], group["eps"]
            scales, decays = trust_ratios(parameter_norms, gradient_norms, *settings)
        return scales.to(self._dtype), decays.to(self._dtype)

    def _momentum(self, p: Tensor) -> Tensor:
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return self.state[p]["momentum_buffer"]

    def _fused(self, tensors: list[Tensor], momenta: list[Tensor]) -> Any:
        """The kernels, or False where they do not run or do not take these tensors."""
        if not tensors[0].is_cuda:
            return False
        if self._kernels is None:
            try:
                from model.optimizer import lars_fused
            except ImportError:  # no triton
                self._kernels = False
            else:
                self._kernels = lars_fused.runs_on(tensors[0].device) and lars_fused.FusedLARS()
        return self._kernels and self._kernels.fits(tensors, momenta) and self._kernels

    def _update(
        self,
        group: dict[str, Any],
        tensors: list[Tensor],
        layout: Layout,
        scales: Float[Tensor, " parameters"],
        decays: Float[Tensor, " parameters"],
    ) -> None:
        # One call for all segments instead of one per segment: a ResNet-50 has 161, most of them tiny.
        momenta = [self._momentum(p) for p in tensors]
        torch._foreach_mul_(momenta, group["momentum"])
        parameters, gradients = _pieces(tensors, layout)
        parts = [piece for p, v in zip(tensors, momenta, strict=True) for piece in layout.pieces(p, v)]
        numbers = torch.cat([layout.numbers(p) for p in tensors])
        torch._foreach_addcmul_(parts, gradients, list(scales[numbers].unbind()))
        if group["weight_decay"]:
            torch._foreach_addcmul_(parts, parameters, list(decays[numbers].unbind()))
        torch._foreach_add_(parameters, parts, alpha=-group["lr"])


def _pieces(tensors: list[Tensor], layout: Layout) -> tuple[list[Tensor], list[Tensor]]:
    """All segments of the tensors, and the same segments of their gradients."""
    parameters = [piece for p in tensors for piece in layout.pieces(p, p.detach())]
    gradients = [piece for p in tensors if p.grad is not None for piece in layout.pieces(p, p.grad)]
    return parameters, gradients


def _squared_norms(tensors: list[Tensor], layout: Layout) -> Float[Tensor, "2 parameters"]:
    """Squared norms of the layout's whole parameters and of their gradients, by one all-reduce; 0 for parameters in no
    tensor of any rank. Float64: on a CPU float32 is 1e-5 off for two million elements."""
    device = tensors[0].device if tensors else layout.device
    squares = torch.zeros(2, len(layout.names), dtype=torch.float64, device=device)
    parameters, gradients = _pieces(tensors, layout)
    if parameters:
        numbers = torch.cat([layout.numbers(p) for p in tensors])
        squares.index_add_(1, numbers, torch.stack([_squares(values) for values in (parameters, gradients)]))
    return layout.add_up(squares)


def _squares(values: list[Tensor]) -> Float[Tensor, " pieces"]:
    """Sum of squares of each tensor, float64, accurate to the rounding of float32."""
    if values[0].is_cuda or values[0].dtype == torch.float64:
        return torch.stack(torch._foreach_norm(values, 2, torch.float64)).square_()
    long = [index for index, value in enumerate(values) if value.numel() >= LONG]
    parts = [_with_norms_of_rows(value) if value.numel() >= LONG else value for value in values]
    norms = torch.stack(torch._foreach_norm(parts, 2, torch.float64))
    for index, norm in zip(long, norms[long].tolist() if long else [], strict=True):
        if not SMALLEST < norm < math.inf:
            norms[index] = torch.linalg.vector_norm(values[index], dtype=torch.float64)
    return norms.square_()


def _with_norms_of_rows(values: Tensor) -> Float[Tensor, " shorter"]:
    """A shorter tensor with the same norm, if no square leaves float32's range: a CPU reads a ResNet-50's parameters in
    float32 in 5 ms, and in float64 in 35 ms."""
    flat = in_memory_order(values)
    in_rows = flat.numel() // ROW * ROW
    return torch.cat([torch.linalg.vector_norm(flat[:in_rows].view(-1, ROW), dim=1), flat[in_rows:]])


def trust_ratios(
    parameter_norms: Float[Tensor, " parameters"],
    gradient_norms: Float[Tensor, " parameters"],
    weight_decay: float,
    trust_coefficient: float,
    eps: float,
) -> tuple[Float[Tensor, " parameters"], Float[Tensor, " parameters"]]:
    """Factors of the gradient (`scale` above) and of the parameter (scale * weight_decay) in each update, from the
    norms of whole parameters. An optimizer with slices of parameters first sums the squared norms of the slices.

    The second factor is computed apart, so that a very large decay gives its limit, trust_coefficient."""
    scales = trust_coefficient * parameter_norms / (gradient_norms + weight_decay * parameter_norms + eps)
    usable = (parameter_norms > 0) & (gradient_norms > 0)
    decays = torch.zeros_like(scales)
    if weight_decay:
        decays = trust_coefficient * parameter_norms / ((gradient_norms + eps) / weight_decay + parameter_norms)
    return torch.where(usable, scales, 1.0), torch.where(usable, decays, 0.0)
