"""A backbone's gradients with activation checkpointing, and compiled, beside its own."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from typing import Any

LIMIT = 1e-3  # of the difference below which gradients in float32 count as the same
BATCH = 4  # images


def compare(name: str, sizes: Sequence[int], backend: str = "inductor") -> dict[str, Any]:
    """ "checkpointing" and "compiled": the distance of the gradient of all parameters to the plain network's, relative
    to its length, or the reason of a refusal; "recomputed": the share of layers that checkpointing calls again;
    "graphs" of the compiled network, and "breaks" between them. In training mode, on noise of both `sizes` (pixels);
    weights and images are laid out channels last, as in a run.
    """
    import torch
    from torch._dynamo.utils import counters
    from torch.nn.modules.module import register_module_forward_hook

    from model.backbone import build_backbone, checkpoint_activations, stride_outside, weights_channels_last

    torch.manual_seed(0)
    plain: Any = build_backbone(name, sizes).train()
    stride_outside(weights_channels_last(plain))
    images = [torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last) for size in sizes]
    weights = torch.randn(BATCH, plain.feature_dim)
    calls: list[int] = []

    def gradient(change: Callable[[Any], Any]) -> torch.Tensor:
        network = copy.deepcopy(plain)
        change(network)
        torch.manual_seed(1)
        sum((network(part) * weights).mean() for part in images).backward()
        grads = [torch.zeros_like(own) if own.grad is None else own.grad for own in network.parameters()]
        return torch.cat([grad.ravel() for grad in grads])

    def distance(change: Callable[[Any], Any]) -> float | str:
        try:
            return float((gradient(change) - expected).norm() / expected.norm())
        except Exception as error:  # of any type: it is what is to be found out
            return " ".join(str(error).split())[:200] or type(error).__name__

    with register_module_forward_hook(lambda *_: calls.append(1)):
        expected, once = gradient(lambda _: None), len(calls)
        found: dict[str, Any] = {"checkpointing": distance(checkpoint_activations)}
        if isinstance(found["checkpointing"], float):
            found["recomputed"] = round(len(calls) / once - 2, 3)
    torch._dynamo.reset()
    counters.clear()
    found["compiled"] = distance(lambda network: network.compile(backend=backend, dynamic=False))
    found |= {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    gc.collect()
    return found
