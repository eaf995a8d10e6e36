"""The paper's ResNets (He et al., arXiv 1512.03385; stride on the 3x3) with the published parameter names.

Differences from torchvision: no classifier; the width multiplies the channels of every convolution, including the stem;
the last norm of a block is initialized to one, as in the published code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": "basic", "layers": (2, 2, 2, 2)},
    "resnet34": {"block": "basic", "layers": (3, 4, 6, 3)},
    "resnet50": {"block": "bottleneck", "layers": (3, 4, 6, 3)},
    "resnet50w2": {"block": "bottleneck", "layers": (3, 4, 6, 3), "width_multiplier": 2},
    "resnet50w4": {"block": "bottleneck", "layers": (3, 4, 6, 3), "width_multiplier": 4},
    "resnet50w5": {"block": "bottleneck", "layers": (3, 4, 6, 3), "width_multiplier": 5},
}


class ResNet(nn.Module):
    """A ResNet from images to globally average-pooled features.

    block: "bottleneck" (4 x width output channels) or "basic".
    layers: blocks per stage, one to four stages; each stage after the first halves the resolution and doubles
        the width.
    width_multiplier: factor for the channels of every convolution (1, 2, 4, 5 in the paper).
    base_width: channels of the stem and of the 3x3 convolutions in the first stage, before the factor.
    in_chans: channels of the images.
    stem: "imagenet" (7x7 stride 2, then max pool: a quarter of the resolution) or "small" (3x3 with
        `stem_stride`, no max pool: for images of about 28 to 64 pixels).

    `feature_dim` is the length of a feature vector. Input [batch, in_chans, height, width], contiguous or
    channels-last. Raises ValueError for other values.
    """

    def __init__(
        self,
        block: str = "bottleneck",
        layers: Sequence[int] = (3, 4, 6, 3),
        width_multiplier: int = 1,
        base_width: int = 64,
        stem: str = "imagenet",
        stem_stride: int = 1,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if block not in ("bottleneck", "basic"):
            raise ValueError(f"resnet block {block!r} is unknown; give 'bottleneck' or 'basic'")
        if stem not in ("imagenet", "small"):
            raise ValueError(f"resnet stem {stem!r} is unknown; give 'imagenet' or 'small'")
        if not 1 <= len(layers) <= 4:
            raise ValueError(f"a resnet has 1 to 4 stages, layers={list(layers)} gives {len(layers)}")
        integers = {"base_width": base_width, "width_multiplier": width_multiplier, "in_chans": in_chans}
        for option, value in integers.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"resnet {option}={value}: expected an integer from 1 on")
        if stem_stride not in (1, 2, 4) or any(not isinstance(n, int) or n < 1 for n in layers):
            values = f"resnet layers={list(layers)}, stem_stride={stem_stride}"
            raise ValueError(f"{values}: expected integers from 1 on, and a stride of 1, 2 or 4")
        make_block = Bottleneck if block == "bottleneck" else BasicBlock
        width = base_width * width_multiplier

        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(in_chans, width, 3, stride=stem_stride, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

        channels = width
        self.stages = len(layers)
        self.checkpointing = False  # keep only the inputs of blocks and recompute the rest in backward
        for stage, blocks in enumerate(layers):
            stage_blocks = []
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                stage_blocks.append(make_block(channels, width * 2**stage, stride))
                channels = width * 2**stage * make_block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*stage_blocks))
        self.feature_dim, self.in_chans = channels, in_chans

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """The layers for layer-wise learning rates, as patterns of parameters' names: the stem, and each block (each
        stage if `coarse`). timm's models have the same method."""
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch features"]:
        """Features in at least float32, even if autocast computes the convolutions in lower precision."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for stage in range(self.stages):
            layer = self.get_submodule(f"layer{stage + 1}")
            for block in layer.children() if recompute else [layer]:
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x.mean(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut; output of 4 x width channels."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (the stride on the first) and a shortcut; output of `width` channels."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of a shortcut; None (the identity) if the shape does not change."""
    if stride == 1 and channels == out_channels:
        return None
    convolution = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
