"""What network the tensors of a file are those of, from their names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.resnet import RESNETS

# width of a vision transformer -> its name in timm
VIT_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
# blocks of the stages and width of the first one -> model of timm
CONVNEXTS: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 6, 2), 40): "convnext_atto",
    ((2, 2, 6, 2), 48): "convnext_femto",
    ((2, 2, 6, 2), 64): "convnext_pico",
    ((2, 2, 8, 2), 80): "convnext_nano",
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
}


def guess(backbone: Mapping[str, Tensor]) -> tuple[str, str]:
    """A network in words, and the value of model.backbone that builds it ("" if none is known).

    backbone: by the names of our ResNet or of timm.
    """
    options = resnet_options(backbone)
    if any(key.endswith(".filt") for key in backbone):
        return "an anti-aliased ResNet (with blur filters)", ""
    if options is not None:
        name = resnet_name(options)
        return f"a {name}", name if name in RESNETS else ""
    patches = backbone.get("patch_embed.proj.weight")
    depth = _count(backbone, r"blocks\.(\d+)\.")
    if patches is not None and patches.ndim == 4 and depth:
        width, patch = int(patches.shape[0]), int(patches.shape[-1])
        described = f"a vision transformer of {depth} blocks, width {width}, patches of {patch} pixels"
        scaled = any(key.endswith(("ls1.gamma", "gamma_1")) for key in backbone)
        kind = "224" if not scaled else "reg4_dinov2" if "reg_token" in backbone else "dinov2"
        return described, f"vit_{VIT_WIDTHS[width]}_patch{patch}_{kind}" if width in VIT_WIDTHS else ""
    if "stem.0.weight" in backbone and _count(backbone, r"stages\.(\d+)\.blocks\."):
        stages = range(_count(backbone, r"stages\.(\d+)\.blocks\."))
        blocks = tuple(_count(backbone, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in stages)
        width = int(backbone["stem.0.weight"].shape[0])
        return f"a ConvNeXt of {'-'.join(map(str, blocks))} blocks, width {width}", CONVNEXTS.get((blocks, width), "")
    some = ", ".join(list(backbone)[:2])
    return f"{len(backbone)} tensors ({some}, ...) of no network that is known here", ""


def resnet_options(backbone: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of swave's ResNet from names and shapes; None if they are not those of one with a known stem."""
    stem = backbone.get("conv1.weight")
    stages = _count(backbone, r"layer(\d+)\.\d+\.conv1\.weight$") - 1
    if stem is None or stem.ndim != 4 or stem.shape[-1] != 7 or stages < 1:
        return None
    layers = [_count(backbone, rf"layer{stage}\.(\d+)\.conv1\.weight$") for stage in range(1, stages + 1)]
    if not all(layers):
        return None
    block = "bottleneck" if "layer1.0.conv3.weight" in backbone else "basic"
    options = {"block": block, "layers": layers, "base_width": int(stem.shape[0]), "stem": "imagenet"}
    return options if stem.shape[1] == 3 else {**options, "in_chans": int(stem.shape[1])}


def resnet_name(options: Mapping[str, Any]) -> str:
    """The name of our ResNet with these options, such as resnet50w2, or a description of them."""
    for name, known in RESNETS.items():
        width = 64 * known.get("width_multiplier", 1)
        own = (known["block"], list(known["layers"]), width)
        if own == (options["block"], list(options["layers"]), options["base_width"]):
            return name
    layers = "-".join(map(str, options["layers"]))
    return f"resnet {options['block']} {layers}, width {options['base_width']}"


def _count(backbone: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number at the place of the pattern's group, 0 without a match."""
    return max((int(match[1]) + 1 for key in backbone if (match := re.match(pattern, key))), default=0)
