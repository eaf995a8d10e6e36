"""LoRA: small matrices in the linear layers of a backbone learn, and its weights do not (Hu et al., ICLR 2022, arXiv
2106.09685, section 4.1): W + alpha / rank * B A, where A has `rank` rows, and B, which starts at zero, `rank` columns.

`peft` (tested with 0.21) puts A and B into the network. The weights that do not move become buffers: so ZeRO does not
divide them, an optimizer does not see them, and a checkpoint holds them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from config.backbones import missing
from model.sizes.trial import takes

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def called_layers(backbone: nn.Module, size: int) -> list[str]:
    """The names of the linear layers that run in a forward pass of images of `size` pixels. torchvision's attention
    reads the weights of its linear layers without running them, so an adapter would do nothing there."""
    called: set[nn.Module] = set()
    linear = {module: name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    hooks = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in linear]
    takes(backbone, size)
    for hook in hooks:
        hook.remove()
    return [name for module, name in linear.items() if module in called]


def add_lora(backbone: nn.Module, rank: int, alpha: float, size: int) -> None:
    """Put adapters into the linear layers of a backbone, in place; nothing else of it learns from now on.

    The outputs do not change. size: of its images, in pixels. Raises ValueError for a backbone without linear layers,
    or without peft.
    """
    layers = called_layers(backbone, size)
    if not layers:
        raise ValueError(f"model.lora.rank={rank}: this backbone has no linear layers, as ViTs have; set it to 0")
    if needs := missing("peft"):
        raise ValueError(f"model.lora.rank={rank} {needs}")
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(settings, backbone)
    for module in backbone.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def merged(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The tensors of a network without adapters that computes the same.

    weights: the state dict of a network, whose backbone has adapters. The products are summed in float64.
    """
    plain = {}
    for name, value in weights.items():
        if name.endswith((DOWN, UP)):
            continue
        layer, base, kind = name.rpartition(BASE)
        if base and kind == "weight":
            down, up = weights[layer + DOWN].double(), weights[layer + UP].double()
            value = (value.double() + alpha / len(down) * (up @ down)).to(torch.float32)
        plain[name.replace(BASE, ".")] = value
    return plain
