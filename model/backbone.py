"""Builds a backbone by name: one of the paper's ResNets, or any model of timm."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model.resnet import RESNETS, ResNet


class UnknownBackbone(ValueError):
    """A name that is no backbone; the message, in one line, has the nearest ones."""


def build_backbone(name: str, sizes: Sequence[int] = (), **options: Any) -> nn.Module:
    """A module from images [batch, 3, height, width] to features [batch, feature_dim], randomly initialized.

    name: one of RESNETS (`options` override its entries), "resnet" (all from `options`, see ResNet), or a
        model of timm (`options` go to `timm.create_model`). Vision transformers accept every resolution that
        their patch size divides.
    sizes: the crop sizes; a model of timm is tested on each.

    Raises UnknownBackbone, and ValueError for an option or size that the backbone does not accept.
    """
    if name in RESNETS or name == "resnet":
        known = list(inspect.signature(ResNet).parameters)
        unknown = [option for option in options if option not in known]
        if unknown:
            raise ValueError(f"backbone {name} has no option {unknown[0]!r}; it has {', '.join(known)}")
        try:
            return ResNet(**(RESNETS.get(name, {}) | options))
        except (
            TypeError,
            RuntimeError,
            ZeroDivisionError,
        ) as error:  # wrong type or impossible size
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"backbone {name} with model.options={options}: {reason}") from None
    network = _build_timm(name, options)
    for size in sizes:
        _check_size(network, name, size)
    return network


@torch.no_grad()
def _check_size(network: nn.Module, name: str, size: int) -> None:
    network.eval()
    try:
        network(torch.zeros(1, 3, size, size))
    except Exception as error:  # timm raises assertions, torch RuntimeErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"backbone {name} does not take crops of {size} pixels: {reason}") from None
    network.train()


def _build_timm(name: str, options: dict[str, Any]) -> nn.Module:
    import timm  # takes seconds to import, and most runs do not use it

    if not timm.is_model(name):
        names = ["resnet", *RESNETS, *timm.list_models()]
        near = difflib.get_close_matches(name, names, n=3) or [*RESNETS]
        kinds = "neither one of swave's nor a model of timm"
        raise UnknownBackbone(f"backbone {name!r} is {kinds}; nearest: {', '.join(near)}")
    options = {"num_classes": 0, "pretrained": False, **options}
    # Multi-crop needs several resolutions; by default, models with position embeddings accept only one.
    try:
        try:
            network = timm.create_model(name, **{"dynamic_img_size": True, **options})
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            network = timm.create_model(name, **options)
    except (TypeError, RuntimeError, OSError) as error:  # OSError: pretrained weights cannot be fetched
        raise ValueError(f"backbone {name} with model.options={options}: {error}") from None
    network.feature_dim = getattr(network, "head_hidden_size", None) or network.num_features
    return network


def checkpoint_activations(backbone: nn.Module) -> None:
    """Make the backbone keep only the inputs of its blocks and recompute the rest in backward; changes it in place.

    Raises ValueError for a backbone without this feature.
    """
    if isinstance(backbone, ResNet):
        backbone.checkpointing = True
    elif callable(switch := getattr(backbone, "set_grad_checkpointing", None)):
        switch(True)
    else:
        raise ValueError("engine.activation_checkpointing: this backbone does not support it; leave it false")
