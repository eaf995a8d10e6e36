"""Finds the backbone and the heads among the tensors of a file, whatever library wrote it (`layouts`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.weights.layouts import CLASSIFIERS, HEADS, NAMES, ROOTS, UNUSED, WRAPPERS, Names, Rules

RESNET_LIKE = re.compile(r"(?:conv1|bn1|layer\d+\.\d+\.(?:conv|bn|downsample)\d?)\b")


@dataclass(frozen=True)
class Found:
    """backbone: tensors by the names of our ResNet or timm's models. heads: under projection_head. and prototypes.,
    several heads of prototypes as one matrix; head_count: how many. library: whose names. root: before them. others:
    where the other tensors of the file stand. rivals: of several roots that fit as well, and that no table knows."""

    backbone: dict[str, Tensor]
    heads: dict[str, Tensor]
    head_count: int
    library: str
    root: str
    others: tuple[str, ...]
    rivals: tuple[str, ...] = ()


def find(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor] | None = None) -> Found:
    """The reading of a file that fits best.

    weights: by the file's names. expected: the backbone's own tensors; without them a ResNet is looked for. Of equal
    readings the first one of `layouts.ROOTS` wins, then the one of averaged weights (`ema`).
    """
    found = readings(weights, expected)
    if expected is None:
        return max(found, key=lambda each: sum(bool(RESNET_LIKE.match(key)) for key in each.backbone))
    fits = [(_agreement(each.backbone, expected), -_unexpected(each.backbone, expected)) for each in found]
    best = fits.index(max(fits))
    rivals = {each.root: None for each, fit in zip(found, fits, strict=True) if fit == fits[best]}
    unknown = found[best].root not in ROOTS and "ema" not in found[best].root
    return replace(found[best], rivals=tuple(rivals) if unknown and len(rivals) > 1 else ())


def readings(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor] | None = None) -> list[Found]:
    """All readings of a file by the tables of `layouts`. weights: by the file's names. expected: as for `find`."""
    plain: Mapping[str, Tensor] = {re.sub(f"^{WRAPPERS}", "", key): value for key, value in weights.items()}
    if len(plain) < len(weights):
        plain = weights  # two networks, such as model and model_ema, that only these words tell apart
    return [*_readings(plain, [*ROOTS, *_other_roots(plain, expected)])]


def _other_roots(plain: Mapping[str, Tensor], expected: Mapping[str, Tensor] | None) -> list[str]:
    """Where else a backbone may stand, found by a tensor that it must have; those of averaged weights first."""
    first = next((key for key in expected or () if key.endswith(".weight")), "conv1.weight")
    marks = re.compile("|".join([re.escape(first) + "$", *(names.mark for names in NAMES if names.mark)]))
    starts = ((key, dot.end()) for key in plain for dot in re.finditer(r"\.", key))
    roots = dict.fromkeys(key[:start] for key, start in starts if marks.match(key, start))
    return sorted((root for root in roots if root not in ROOTS), key=lambda root: "ema" not in root)


def _readings(plain: Mapping[str, Tensor], roots: Sequence[str]) -> Iterator[Found]:
    heads, count = _heads(plain)
    for root in roots:
        inner = {key.removeprefix(root): value for key, value in plain.items() if key.startswith(root)}
        if not inner:
            continue
        outside = [key for key in plain if not key.startswith(root)]
        others = tuple(dict.fromkeys(key.split(".")[0] for key in outside if not is_head(key)))
        for names in NAMES:
            if any(re.match(names.mark, key) for key in inner):
                yield Found(_named(inner, names), heads, count, names.library, root, others)


def _named(inner: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    named = {renamed(key, names.rules): value for key, value in inner.items()}
    return _joined(named) if any(".attn.q." in key for key in named) else named


def renamed(key: str, rules: Rules) -> str:
    """A name by the first rule that matches its start; itself without one."""
    for pattern, replacement in rules:
        if match := re.match(pattern, key):
            start = match.expand(re.sub(r"<(\d)\+1>", r"<\\\1+1>", replacement))
            return re.sub(r"<(\d+)\+1>", lambda number: str(int(number[1]) + 1), start) + key[match.end() :]
    return key


def _joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as one tensor qkv, as timm has them; a missing bias (DINOv3's keys) is zero."""
    joined: dict[str, Tensor] = {}
    for key, value in weights.items():
        if (match := re.match(r"(.*\.attn\.)([qkv])\.(weight|bias)$", key)) is None:
            joined[key] = value
        elif match[2] == "q":
            names = (f"{match[1]}{part}.{match[3]}" for part in "qkv")
            parts = [weights.get(name, torch.zeros_like(value)) for name in names]
            joined[f"{match[1]}qkv.{match[3]}"] = torch.cat(parts)
    return joined


def _heads(plain: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Projection head and prototypes, and the number of heads of prototypes."""
    named = {renamed(key, HEADS): value for key, value in plain.items() if is_head(key)}
    parts = {
        int(match[1]): key for key in named if (match := re.fullmatch(r"prototypes\.prototypes(\d+)\.weight", key))
    }
    if parts:
        named["prototypes.weight"] = torch.cat([named[parts[head]] for head in sorted(parts)])
    heads = {
        key: value for key, value in named.items() if key == "prototypes.weight" or not key.startswith("prototypes")
    }
    return heads, max(1, len(parts))


def is_head(key: str) -> bool:
    """Whether a tensor belongs to a projection head or prototypes."""
    return any(re.match(pattern, key) for pattern, _ in HEADS)


def _unexpected(backbone: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """How many tensors the backbone does not have, without those of classifiers and heads."""
    return sum(not re.match(f"{CLASSIFIERS}|{UNUSED}", key) for key in backbone.keys() - expected.keys())


def _agreement(backbone: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """How many tensors have the right name and shape; one with another shape counts half."""
    return sum(0.5 + 0.5 * (backbone[key].shape == expected[key].shape) for key in expected if key in backbone)
