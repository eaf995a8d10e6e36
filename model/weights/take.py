"""Gives a network the weights of a file of any library, or says in one line why they do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.weights.files import check_finite, read_weights
from model.weights.guess import guess
from model.weights.layouts import CLASSIFIERS, UNUSED
from model.weights.recognize import Found, find, is_head, readings
from model.weights.resize import resized, without_class_position
from model.weights.reverse import in_layout

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BACKBONE = "backbone."
_HIDDEN_BIAS = "projection_head.0.bias"
_COUNTER = "num_batches_tracked"  # of batch norm with a momentum, which does not use it


def load_weights(
    network: nn.Module, path: str | Path, backbone_only: bool = False, say: Callable[[str], None] = lambda line: None
) -> str:
    """Load the weights of a file into a SwAV network or a bare backbone; on an error the network does not change.

    path: as for `read_weights`, in any layout of `layouts`. Positions and patch embeddings of vision transformers are
        resized (`resize`); classifiers, and what else the network does not have, are left out.
    backbone_only: do not change projection head and prototypes. A bare backbone implies it. Otherwise heads of the same
        shapes are taken, and others keep the network's own values.

    say: gets the line that says what was found and taken, before its values are checked; it is returned too.

    Values are not changed, except for resized ones: published prototypes were saved one update after their
    normalization; call `network.prototypes.normalize()` before training continues from them.

    Raises ValueError, one line, if the file is missing or unreadable, holds infinite or NaN values, or the weights of
    another backbone.
    """
    return take_weights(network, read_weights(Path(path)), f"weights {path}", backbone_only, say)


def take_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    source: str = "weights",
    backbone_only: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """`load_weights` from tensors by name instead of a file. source: their name in lines and errors."""
    whole = isinstance(getattr(network, "backbone", None), nn.Module)
    backbone = network.get_submodule("backbone") if whole else network
    expected = backbone.state_dict()
    found = find(weights, expected)
    fit = _fit(found, expected, backbone)
    if found.rivals:
        raise ValueError(f"{source} hold several networks that fit ({', '.join(found.rivals)}); save one of them alone")
    if fit.faults:
        found, fit = _by_names_of_the_network(weights, expected, backbone) or (found, fit)
    if fit.faults:
        raise ValueError(_refusal(source, found, fit.faults))
    values = {(_BACKBONE if whole else "") + key: value for key, value in fit.values.items()}
    words = [f"{len(fit.values)} tensors of the backbone ({found.library}{found.root and f', below {found.root}'})"]
    words += fit.notes
    if whole and not backbone_only:
        heads = _fitting_heads(found.heads, network)
        values |= heads
        words.append(_head_words(found, heads))
    if left := [*fit.left, *found.others]:
        words.append(f"left out: {', '.join(dict.fromkeys(left))}")
    line = f"{source}: {'; '.join(words)}"
    say(line)
    _check_types(values, network.state_dict(), source)
    check_finite(values, source)
    network.load_state_dict(values, strict=False)  # counters and heads may be missing
    return line


def _check_types(values: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    for key, value in values.items():
        if own[key].is_floating_point() and value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise ValueError(f"{source}: {key} is of {kind}, as quantized weights are; save floats of 16 bits or more")


def published_names(state_dict: Mapping[str, Tensor], heads: int = 1) -> dict[str, Tensor]:
    """The tensors of a network under the published names (golden/state_dict_shapes.json), without `module.`.

    heads: of prototypes.
    """
    named = {key.removeprefix(_BACKBONE): value for key, value in state_dict.items()}
    if heads > 1:
        for head, weight in enumerate(named.pop("prototypes.weight").chunk(heads)):
            named[f"prototypes.prototypes{head}.weight"] = weight.contiguous()
    return named


# ---------------------------------------------------------------------------------------------- backbone
@dataclass(frozen=True)
class _Fit:
    """values: for the backbone. notes: what was resized. left: tensors without use, by their first word. faults: why
    the weights do not fit, in words."""

    values: dict[str, Tensor]
    notes: list[str]
    left: list[str]
    faults: list[str]


def _fit(found: Found, expected: Mapping[str, Tensor], backbone: nn.Module) -> _Fit:
    given = _split_bias(without_class_position(found.backbone, expected), expected)
    values: dict[str, Tensor] = {}
    notes, reshaped = [], []
    for key, own in expected.items():
        if key not in given:
            continue
        fitted = resized(key, given[key], own, backbone)
        if fitted is None:
            reshaped.append(f"{key} {list(given[key].shape)} for {list(own.shape)}")
            continue
        values[key] = fitted[0]
        notes += [fitted[1]] if fitted[1] else []
    extra = [key for key in given if key not in expected and not key.endswith(_COUNTER)]
    left = [key.split(".")[0] for key in extra if re.match(f"{CLASSIFIERS}|{UNUSED}", key) and not is_head(key)]
    faults = {
        "missing": [key for key in expected if key not in given and not key.endswith(_COUNTER)],
        "unexpected": [key for key in extra if not re.match(f"{CLASSIFIERS}|{UNUSED}", key)],
        "of another shape": reshaped,
    }
    texts = [
        f"{len(keys)} {fault} ({keys[0]}{', ...' if len(keys) > 1 else ''})" for fault, keys in faults.items() if keys
    ]
    return _Fit(values, notes, left, texts)


def _by_names_of_the_network(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], backbone: nn.Module
) -> tuple[Found, _Fit] | None:
    """A reading that fits a network of torchvision or transformers, whose tensors have that library's names; these are
    not always those of its files."""
    for found in readings(weights, expected):
        fit = _fit(replace(found, backbone=in_layout(found.backbone, expected)), expected, backbone)
        if not fit.faults:
            return found, fit
    return None


def _split_bias(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with DINOv3's and EVA's names of scales and biases, if the network has these.

    Their keys have no bias, and rotary positions make one count: a file with one that is not zero keeps it, as a name
    that does not fit. DINOv3's own files hold values there that their `bias_mask` sets to zero.
    """
    split: dict[str, Tensor] = {}
    for key, value in weights.items():
        eva = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)
        start = key.removesuffix("qkv.bias")
        if eva != key and eva in expected:
            split[eva] = value
        elif start == key or key in expected:
            split[key] = value
        else:
            query, of_keys, values = value.masked_fill(weights.get(f"{key}_mask", value.new_ones(1)) == 0, 0).chunk(3)
            if f"{start}q_bias" in expected:
                split |= {f"{start}q_bias": query, f"{start}v_bias": values}
                if of_keys.any():
                    split[f"{start}k_bias"] = of_keys
            elif query.any() or of_keys.any() or values.any():
                split[key] = value
    return split


# ---------------------------------------------------------------------------------------------- heads
def _fitting_heads(heads: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The projection head if all its tensors fit, and then the prototypes if they fit."""
    own = {key: value for key, value in network.state_dict().items() if not key.startswith(_BACKBONE)}
    if _HIDDEN_BIAS in own and f"{_HIDDEN_BIAS[:-4]}weight" in heads:
        heads = {_HIDDEN_BIAS: torch.zeros_like(own[_HIDDEN_BIAS]), **heads}  # lightly has none before its batch norm

    def taken(start: str) -> dict[str, Tensor]:
        names = [key for key in own if key.startswith(start)]
        needed = [key for key in names if not key.endswith(_COUNTER)]
        good = all(key in heads and heads[key].shape == own[key].shape for key in needed)
        return {key: heads[key] for key in names if key in heads} if good else {}

    projection = taken("projection_head.")
    return projection | taken("prototypes.") if projection else {}


def _head_words(found: Found, taken: Mapping[str, Tensor]) -> str:
    if "prototypes.weight" in taken:
        return "projection head and prototypes taken"
    if taken:
        return "projection head taken, prototypes made anew"
    return f"projection head and prototypes made anew ({'the file has others' if found.heads else 'the file has none'})"


# ---------------------------------------------------------------------------------------------- errors
def _refusal(source: str, found: Found, faults: list[str]) -> str:
    described, name = guess(found.backbone)
    remedy = f"; model.backbone={name} fits" if name else ""
    return f"{source} hold {described}, which does not fit the network: {'; '.join(faults)}{remedy}"
