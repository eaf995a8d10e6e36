"""LARS as SwAV used it (appendix A; You et al., arXiv 1708.03888): the variant LARC, without clipping.

    scale = trust * |p| / (|g| + weight_decay * |p| + eps)
    v <- momentum * v + scale * (g + weight_decay * p)
    p <- p - lr * v

for every parameter p with gradient g, biases and norms too. Where |p| or |g| is zero: scale 1 and no decay.
As in the published code the trust ratio scales what enters the momentum, not what leaves it, so that a change
of the learning rate acts at once.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive SGD with momentum, for float32 or float64. Nothing here waits for the device.

    params: parameters or groups of them; `parameter_groups` makes the groups for a SwAV network.
    lr: learning rate; the training loop sets each group's "lr" before every step.
    momentum, weight_decay, trust_coefficient, eps: as above.

    Flags a group may carry, all of which may be changed between steps:
    trust_ratio (True): False makes it plain SGD with momentum and the group's own weight decay.
    unit_rows (False): the rows of its parameters are L2-normalised inside `step`, right after the update:
        there it reaches the float32 masters, which would undo a normalisation of the network's own copy.
    frozen (False): `step` leaves the group entirely alone: no update, momentum, decay or normalisation.

    Parameters without a gradient are skipped. State per parameter: "momentum_buffer".
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
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all groups that are not frozen. Returns what `closure` returns, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and not group["frozen"]:
                self._update(group, parameters)
                if group["unit_rows"]:
                    for parameter in parameters:
                        unit_rows_(parameter)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        decay = group["weight_decay"]

        # One call over all tensors instead of one per tensor: a ResNet-50 has 161, most of them tiny.
        torch._foreach_mul_(buffers, group["momentum"])
        if group["trust_ratio"]:
            scales, decays = trust_ratios(
                torch.stack(torch._foreach_norm(parameters)),
                torch.stack(torch._foreach_norm(gradients)),
                decay,
                group["trust_coefficient"],
                group["eps"],
            )
            torch._foreach_addcmul_(buffers, gradients, list(scales.unbind()))
            if decay:
                torch._foreach_addcmul_(buffers, parameters, list(decays.unbind()))
        else:
            torch._foreach_add_(buffers, gradients)
            if decay:
                torch._foreach_add_(buffers, parameters, alpha=decay)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def trust_ratios(
    parameter_norms: Float[Tensor, " parameters"],
    gradient_norms: Float[Tensor, " parameters"],
    weight_decay: float,
    trust_coefficient: float,
    eps: float,
) -> tuple[Float[Tensor, " parameters"], Float[Tensor, " parameters"]]:
    """Factors of the gradient and of the parameter in each update, from the norms of whole parameters.

    The norms are all that a layer-wise rule needs to know of a layer: whoever holds only slices of the
    parameters sums the slices' squared norms first and asks here too.
    """
    scales = trust_coefficient * parameter_norms / (gradient_norms + weight_decay * parameter_norms + eps)
    usable = (parameter_norms > 0) & (gradient_norms > 0)
    return torch.where(usable, scales, 1.0), torch.where(usable, scales * weight_decay, 0.0)


@torch.no_grad()
def unit_rows_(weight: Float[Tensor, "rows dim"]) -> None:
    """L2-normalises the rows in place. A row of zeros stays one."""
    weight.div_(torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min_(1e-12))


def parameter_groups(network: nn.Module, exclude_1d: bool = False) -> list[dict[str, Any]]:
    """The network's trainable parameters as groups for LARS, empty ones left out.

    The prototypes (parameters under `prototypes.`) come last, in a group of their own with `unit_rows`, so
    that the training loop can freeze them. With `exclude_1d`, biases and norms form a group without trust
    ratio and decay; the paper scales and decays them like the rest.
    """
    main: list[nn.Parameter] = []
    one_dimensional: list[nn.Parameter] = []
    prototypes: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("prototypes."):
            prototypes.append(parameter)
        elif exclude_1d and parameter.ndim <= 1:
            one_dimensional.append(parameter)
        else:
            main.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": main},
        {"params": one_dimensional, "trust_ratio": False, "weight_decay": 0.0},
        {"params": prototypes, "unit_rows": True},
    ]
    return [group for group in groups if group["params"]]
