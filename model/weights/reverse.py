"""A backbone's tensors by the names of another library: the tables of `layouts` read backwards."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.weights.layouts import NAMES
from model.weights.recognize import renamed

_PART = re.compile(r"(.*\.attn\.)([qkv])\.(weight|bias)$")  # of the tensor qkv


def in_layout(backbone: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `backbone` (names of our ResNet or timm's models) by the names of `target`; values do not change.

    target: the state dict of the same network in another library's code, in a layout that `take_weights` reads. A
        tensor that the target has for training alone (a mask token) is zero, as is the position of a class token that
        holds its position itself.

    Tensors without a place in the target keep their own names, and names without a tensor here are missing: the caller
    compares the names.
    """
    rules = next(
        (names.rules for names in NAMES if names.mark and any(re.match(names.mark, key) for key in target)), ()
    )
    own, used, result = _by_plain_names(backbone), set[str](), dict[str, Tensor]()
    for key, place in target.items():
        name = renamed(key, rules)
        part = _PART.fullmatch(name)
        name = f"{part[1]}qkv.{part[3]}" if part else name
        if name == "mask_token":
            result[key] = torch.zeros_like(place)
        if name not in own:
            continue
        value = own[name].chunk(3)["qkv".index(part[2])] if part else own[name]
        if name == "pos_embed" and "reg_token" in own and place.shape[1] == value.shape[1] + 1:
            value = torch.cat([torch.zeros_like(value[:, :1]), value], 1)
        if [side for side in value.shape if side != 1] == [side for side in place.shape if side != 1]:
            value = value.reshape(place.shape)  # a convolution of 1 x 1 is a linear layer
        result[key] = value.contiguous()
        used.add(name)
    return result | {name: value for name, value in own.items() if name not in used}


def _by_plain_names(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the scales and biases of timm's Eva (DINOv3) by the names of its VisionTransformer."""
    plain: dict[str, Tensor] = {}
    for key, value in backbone.items():
        start = key.removesuffix("q_bias")
        if start != key:
            plain[f"{start}qkv.bias"] = torch.cat([value, torch.zeros_like(value), backbone[f"{start}v_bias"]])
        elif not key.endswith(".attn.v_bias"):
            plain[re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", key)] = value
    return plain
