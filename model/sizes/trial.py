"""Tries whether a network takes images of a size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_of(network: nn.Module) -> int:
    """Channels of the images that a network takes: `in_chans`, which our ResNets have and timm's get, else 3."""
    return int(getattr(network, "in_chans", 3))


@torch.no_grad()
def takes(network: nn.Module, size: int) -> bool:
    """Whether the network takes images of this size; its random state, buffers and mode do not change."""
    training, like, buffers = network.training, next(network.parameters()), computed_buffers(network)
    try:
        network.eval()(torch.zeros(1, channels_of(network), size, size, device=like.device, dtype=like.dtype))
    except Exception:  # of any type: timm raises assertions, torch RuntimeErrors
        return False
    finally:
        network.train(training)
        put_back(buffers)
    return True


def computed_buffers(network: nn.Module) -> list[tuple[nn.Module, str, Tensor | None]]:
    """Module, name and value of the buffers that no state dict has; some networks compute them for each size."""
    modules = network.modules()
    return [(module, key, module._buffers[key]) for module in modules for key in module._non_persistent_buffers_set]


def put_back(buffers: list[tuple[nn.Module, str, Tensor | None]]) -> None:
    """Give modules these buffers again."""
    for module, key, value in buffers:
        module._buffers[key] = value
