"""Builds a backbone's counterpart in torchvision or timm: the same network in their code, with their key names.

Classifiers are left out: a run trains none, and a random classifier would mislead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.libraries import library_code
from model.libraries.names import library_of
from model.resnet import RESNETS, ResNet
from model.sizes.trial import channels_of
from model.weights import in_layout
from training.trained_network import Trained

# patch size, width, blocks, heads, MLP width -> builder in torchvision.models
VISION_TRANSFORMERS = {
    (16, 768, 12, 12, 3072): "vit_b_16",
    (32, 768, 12, 12, 3072): "vit_b_32",
    (16, 1024, 24, 16, 4096): "vit_l_16",
    (32, 1024, 24, 16, 4096): "vit_l_32",
    (14, 1280, 32, 16, 5120): "vit_h_14",
}

TOLERANCE = 1e-4  # relative to the largest feature; kernels round differently, another activation differs by 1e-2


@dataclass(frozen=True)
class Counterpart:
    """network: without classifier, with the trained weights, in eval mode. code: the lines of Python that build it."""

    network: nn.Module
    code: list[str]


def torchvision_counterpart(trained: Trained) -> Counterpart:
    """The counterpart in torchvision.models. Raises ValueError (one line) if there is none."""
    import torchvision

    backbone = trained.network.backbone
    if library_of(trained.backbone_name)[0] == "torchvision":
        return Counterpart(backbone, library_code(trained))
    name: str | None
    settings: dict[str, Any]
    if isinstance(backbone, ResNet):
        name, settings, head, size = standard_resnet(trained), {}, "fc", 64
    else:
        name, settings, size = _vision_transformer(backbone)
        head = "heads"
    if name is None:
        raise no_counterpart(trained, "torchvision")
    network = getattr(torchvision.models, name)(**settings)
    setattr(network, head, nn.Identity())
    first = _first_layer(network, channels_of(backbone))
    weights = in_layout(backbone.state_dict(), network.state_dict())
    arguments = ", ".join(f"{key}={value}" for key, value in settings.items())
    code = [
        "import torch, torchvision",
        f"network = torchvision.models.{name}({arguments}).eval()",
        f"network.{head} = torch.nn.Identity()",
        *first,
    ]
    return with_weights(trained, network, weights, code, size, "torchvision")


def _first_layer(network: nn.Module, channels: int) -> list[str]:
    """Give a network of torchvision a first layer for so many channels, as none of its builders does; the line of
    Python that does so, [] for RGB."""
    if channels == 3:
        return []
    name = "conv1" if hasattr(network, "conv1") else "conv_proj"
    old = network.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    settings = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    bias = old.bias is not None
    setattr(network, name, nn.Conv2d(channels, old.out_channels, **settings, bias=bias))  # type: ignore[arg-type]
    arguments = ", ".join(f"{key}={value}" for key, value in {**settings, "bias": bias}.items())
    return [f"network.{name} = torch.nn.Conv2d({channels}, {old.out_channels}, {arguments})"]


def timm_counterpart(trained: Trained) -> Counterpart:
    """The counterpart in timm; a backbone of timm is its own. Raises ValueError (one line) if there is none."""
    backbone = trained.network.backbone
    name: str | None = trained.backbone_name
    options: dict[str, Any] = {"num_classes": 0, **trained.options}
    if isinstance(backbone, ResNet):
        name, options = standard_resnet(trained), {"num_classes": 0}
        options |= {} if backbone.in_chans == 3 else {"in_chans": backbone.in_chans}
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    code = ["import timm, torch", f"network = timm.create_model({name!r}, {arguments}).eval()"]
    if name is None or library_code(trained):
        raise no_counterpart(trained, "timm")
    if not isinstance(backbone, ResNet):
        return Counterpart(backbone, code)
    import timm

    return with_weights(trained, timm.create_model(name, **options), backbone.state_dict(), code, 64, "timm")


def standard_resnet(trained: Trained) -> str | None:
    """The name of this ResNet in both torchvision and timm; None for other widths and stems."""
    plain: dict[str, Any] = {"block": "bottleneck", "width_multiplier": 1, "base_width": 64, "stem": "imagenet"}
    settings = plain | {"layers": (3, 4, 6, 3)} | RESNETS.get(trained.backbone_name, {}) | trained.options
    settings["layers"] = tuple(settings["layers"])
    settings.pop("stem_stride", None)  # only the small stem has it
    settings.pop("in_chans", None)  # of any network
    for name in ("resnet18", "resnet34", "resnet50"):
        if settings == plain | RESNETS[name]:
            return name
    return None


def _vision_transformer(backbone: nn.Module) -> tuple[str | None, dict[str, Any], int]:
    """Builder in torchvision.models, its arguments and the image size, for a plain VisionTransformer of timm;
    (None, {}, 0) for another network."""
    from timm.models import VisionTransformer

    weights = backbone.state_dict()
    if not isinstance(backbone, VisionTransformer) or "blocks.0.mlp.fc1.weight" not in weights:
        return None, {}, 0
    tokens, width = weights["pos_embed"].shape[1:] if "pos_embed" in weights else (0, 0)
    patch = weights["patch_embed.proj.weight"].shape[-1]
    size = int(max(tokens - 1, 0) ** 0.5) * patch
    heads, hidden = int(backbone.blocks[0].attn.num_heads), weights["blocks.0.mlp.fc1.weight"].shape[0]
    name = VISION_TRANSFORMERS.get((patch, width, len(backbone.blocks), heads, hidden))
    if name:
        return name, {"image_size": size}, size
    settings = {"image_size": size, "patch_size": patch, "num_layers": len(backbone.blocks), "num_heads": heads}
    return "VisionTransformer" if size else None, settings | {"hidden_dim": width, "mlp_dim": hidden}, size


@torch.no_grad()
def with_weights(
    trained: Trained,
    network: nn.Module,
    weights: dict[str, Tensor],
    code: list[str],
    size: int,
    library: str,
    features_of: Callable[[nn.Module, Tensor], Tensor] = lambda network, images: network(images),
) -> Counterpart:
    """The counterpart with the trained weights. Raises ValueError unless it gives the same features.

    Equal names and shapes are not enough: a network with another activation, epsilon or pooling has them too. size:
    pixels of the test images. code: the lines that build `network`. features_of: the features of images out of it.
    """
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    different = [
        key for key in shapes.keys() | weights.keys() if key not in weights or shapes.get(key) != weights[key].shape
    ]
    if different:
        raise no_counterpart(trained, library, f"it differs in {min(different)}")
    network.load_state_dict(weights)
    network.eval()
    shape = 2, channels_of(trained.network.backbone), size, size
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected, features = trained.network.backbone(images), features_of(network, images)
    if expected.shape != features.shape or (expected - features).abs().max() > TOLERANCE * expected.abs().max():
        raise no_counterpart(trained, library, "the same weights give other features there")
    return Counterpart(network, code)


def no_counterpart(trained: Trained, library: str, reason: str = "") -> ValueError:
    """A refusal in one line that names formats for this backbone."""
    others = ["swav", "safetensors", "onnx", "torchscript", "pt2"]
    if library_code(trained):
        own = library_of(trained.backbone_name)[0]
        others = [*([own] if own else []), *others]
    elif library != "timm" and (not isinstance(trained.network.backbone, ResNet) or standard_resnet(trained)):
        others.insert(0, "timm")
    options = f" with model.options={trained.options}" if trained.options else ""
    return ValueError(
        f"backbone {trained.backbone_name}{options} has no counterpart in {library}{reason and f' ({reason})'}; "
        f"use one of these formats: {', '.join(others)}"
    )
