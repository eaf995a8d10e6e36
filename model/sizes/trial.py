"""Tries whether a network takes images of a size."""

from __future__ import annotations

import traceback

import torch
from torch import Tensor, nn


def channels_of(network: nn.Module) -> int:
    """Channels of the images that a network takes: `in_chans`, which our ResNets have and timm's get, else 3."""
    return int(getattr(network, "in_chans", 3))


def takes(network: nn.Module, size: int) -> bool:
    """Whether the network takes images of this size; its random state, buffers and mode do not change."""
    return problem(network, size) is None


def layer_of(error: Exception, network: nn.Module) -> str:
    """Which layer of the network raised an error, and what it says, in one line."""
    names = {module: name for name, module in network.named_modules()}
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    layer = [module for module in callers if isinstance(module, nn.Module) and module in names][-1]
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{names[layer]} ({type(layer).__name__}): {reason}"


@torch.no_grad()
def problem(network: nn.Module, size: int) -> Exception | None:
    """The error of a forward pass with an image of this size, None if there is none."""
    training, like, buffers = network.training, next(network.parameters()), computed_buffers(network)
    try:
        network.eval()(torch.zeros(1, channels_of(network), size, size, device=like.device, dtype=like.dtype))
    except Exception as error:  # of any type: timm raises assertions, torch RuntimeErrors
        return error
    finally:
        network.train(training)
        put_back(buffers)
    return None


def computed_buffers(network: nn.Module) -> list[tuple[nn.Module, str, Tensor | None]]:
    """Module, name and value of the buffers that no state dict has; some networks compute them for each size."""
    modules = network.modules()
    return [(module, key, module._buffers[key]) for module in modules for key in module._non_persistent_buffers_set]


def put_back(buffers: list[tuple[nn.Module, str, Tensor | None]]) -> None:
    """Give modules these buffers again."""
    for module, key, value in buffers:
        module._buffers[key] = value
