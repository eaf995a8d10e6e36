"""Feature maps of a frozen backbone, and images as its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

Maps = Callable[[Tensor], Tensor]


def map_function(network: nn.Module, stage: str | None, precision: Callable[[], object]) -> Maps:
    """Images [batch, 3, s, s] -> maps [batch, channels, h, w], float32, without a gradient.

    stage: the part of the network whose output is taken; None: the last layerN of a ResNet, or the norm or last block
    of a vision transformer, whose tokens, without class and register tokens, are laid out as a square. precision: the
    context of a forward pass. Raises ValueError for a stage without a map.
    """
    name = stage or last_stage(network)
    try:
        module = network.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in network.named_children())
        raise ValueError(f"--stage={name}: the network has {children}") from None
    prefix = int(getattr(network, "num_prefix_tokens", 0))

    def maps(images: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            with torch.no_grad(), precision():  # type: ignore[attr-defined]
                network(images)
        finally:
            hook.remove()
        output = outputs[-1].detach().float()
        if output.ndim == 3:
            tokens = output[:, prefix:]
            side = math.isqrt(tokens.shape[1])
            if side * side == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, (side, side))
        if output.ndim != 4:
            raise ValueError(f"--stage={name}: its output {list(output.shape)} is no map; give another stage")
        return output

    return maps


def last_stage(network: nn.Module) -> str:
    """The name of the part with the last map. Raises ValueError where none is known."""
    layers = [name for name, _ in network.named_children() if name.startswith("layer") and name[5:].isdecimal()]
    if layers:
        return max(layers, key=lambda name: int(name[5:]))
    names = {name for name, _ in network.named_children()}
    if "blocks" in names:
        return "norm" if "norm" in names and not isinstance(network.norm, nn.Identity) else "blocks"
    for name in ("stages", "features"):
        if name in names:
            return name
    raise ValueError(f"--stage is missing: give one of {', '.join(sorted(names))}")


def as_input(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "3 height width"]:
    """An RGB image, normalized."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def scaled(image: Image.Image, shorter: int) -> Image.Image:
    """The image with `shorter` pixels on its shorter side, bilinear with antialiasing."""
    ratio = shorter / min(image.size)
    size = (max(shorter, round(image.width * ratio)), max(shorter, round(image.height * ratio)))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
