"""The parameters of a network in the groups of an optimizer: decay, learning rates by part and layer, prototypes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def parameter_groups(
    network: nn.Module,
    exclude_1d: bool = False,
    *,
    layer_decay: float = 1.0,
    backbone_scale: float = 1.0,
    backbone_apart: bool = False,
    matrices_apart: bool = False,
) -> list[dict[str, Any]]:
    """The trainable parameters of a SwAV network in groups of the same options, without empty groups.

    The prototypes (parameters under `prototypes.`) are the last group, with `unit_rows`, so that the training loop can
    freeze them.

    exclude_1d: biases and norms have neither trust ratio nor decay; the paper scales and decays them like all others.
    layer_decay, backbone_scale: the learning rate of a backbone's layer is `backbone_scale` times `layer_decay` to the
        power of the layers behind it in the backbone: the group option "lr_scale", which `set_step` applies.
    backbone_apart: groups of the backbone have the option `backbone`, so that `set_step` can freeze it.
    matrices_apart: the matrices of the backbone have the option `orthogonal`, for Muon.

    Raises ValueError for a layer_decay below 1 if the backbone does not list its layers.
    """
    layers = {} if layer_decay == 1 else layer_scales(network.get_submodule("backbone"), layer_decay)
    matrices = matrices_of(network.get_submodule("backbone")) if matrices_apart else set()
    groups: dict[Any, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        options: dict[str, Any] = {}
        if name.startswith("prototypes."):
            options["unit_rows"] = True
        elif exclude_1d and parameter.ndim <= 1:
            options |= {"trust_ratio": False, "weight_decay": 0.0}
        if name.startswith("backbone."):
            options |= {"lr_scale": backbone_scale * layers.get(parameter, 1.0)}
            options |= {"backbone": True} if backbone_apart else {}
            options |= {"orthogonal": True} if parameter in matrices else {}
        options = {"lr_scale": 1.0, **options}
        groups.setdefault(tuple(options.items()), {"params": [], **options})["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: "unit_rows" in group)


def matrices_of(backbone: nn.Module) -> set[Tensor]:
    """The weights of a backbone's linear layers and convolutions, but not of its first layer, which takes the pixels,
    and of convolutions in groups: what Muon is for (Jordan 2024)."""
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return {layer.weight for layer in layers[1:] if getattr(layer, "groups", 1) == 1}


def layer_scales(backbone: nn.Module, layer_decay: float) -> dict[Tensor, float]:
    """The factor of each parameter's learning rate: 1 in the last layer, `layer_decay` times that in the one before it,
    and so on to the first (Clark et al., arXiv 2003.10555; as timm computes it).

    Layers are the stem and the blocks that the backbone's `group_matcher` lists. Raises ValueError if it has none.
    """
    if not hasattr(backbone, "group_matcher"):
        raise ValueError("optimizer.layer_decay needs a backbone that lists its layers; leave it at 1")
    from timm.optim import param_groups_layer_decay

    layers = param_groups_layer_decay(backbone, layer_decay=layer_decay)
    return {parameter: group["lr_scale"] for group in layers for parameter in group["params"]}
