"""Tries a backbone of another library once, before a run starts: each size, in training and in evaluation."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.sizes.trial import channels_of

STEPS = (4, 7, 8, 14, 16, 32)  # patch sizes and strides: sizes near a refused one are multiples of them
USUAL = (224, 96, 64, 32)  # feature_dim tries these sizes if it gets none
CHANGING = ("num_classes", "features_only", "global_pool", "out_indices")  # options that change what comes out


def check_features(network: nn.Module, name: str, options: Mapping[str, Any], sizes: Iterable[int]) -> None:
    """Raise ValueError, one line, unless images [2, channels, s, s] give finite features [2, feature_dim] for each
    size s.

    Weights, buffers and torch's random state do not change; the network ends in training mode.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            for size in sorted(set(sizes)):
                for training in (False, True):
                    _check(network.train(training), described(name, options), options, size)
    finally:
        network.train()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def feature_dim(network: nn.Module, name: str, options: Mapping[str, Any], sizes: Iterable[int]) -> int:
    """The length of the features, found by running the network for one of the sizes, else of those that networks are
    usually built for. Raises ValueError, one line, if it gives none."""
    training, buffers = network.training, [(buffer, buffer.clone()) for buffer in network.buffers()]
    output, problem = None, None
    try:
        with torch.random.fork_rng(devices=[]):
            for size in sorted(set(sizes)) or USUAL:
                try:
                    output = _features(network.eval(), size)
                    break
                except Exception as error:  # of any type
                    problem = problem or f"does not take crops of {size} pixels: {first_line(error)}"
    finally:
        network.train(training)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    if output is None:
        raise ValueError(f"{described(name, options)} {problem}")
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2:
        raise ValueError(f"{described(name, options)} gives {_shape(output)} in place of features [2, N] for 2 images")
    return int(output.shape[1])


def first_line(error: BaseException) -> str:
    """The first line of an error that has any, else its type and the line of code: timm's assertions often have no
    text."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = traceback.extract_tb(error.__traceback__)
    if not text and frames:
        text = f"{type(error).__name__} at `{frames[-1].line}`"
    return (f"no such name: {text}" if isinstance(error, KeyError) else text or type(error).__name__)[:200]


def described(name: str, options: Mapping[str, Any]) -> str:
    """A backbone in the words of messages."""
    return f"backbone {name}" + (f" with model.options={dict(options)}" if options else "")


def _check(network: nn.Module, words: str, options: Mapping[str, Any], size: int) -> None:
    try:
        output = _features(network, size)
    except Exception as error:  # of any type: timm raises assertions, torch RuntimeErrors
        reason = first_line(error)
        raise ValueError(
            f"{words} does not take crops of {size} pixels: {reason}{sizes_near(network.eval(), size)}"
        ) from None
    dim = network.feature_dim
    if not isinstance(output, Tensor) or output.shape != (2, dim):
        given = [option for option in CHANGING if option in options]
        leave = f"; leave out {' and '.join(given)}" if given else ""
        raise ValueError(f"{words} gives {_shape(output)} in place of features [2, {dim}] for 2 images{leave}")
    if not output.is_meta and not output.isfinite().all():
        raise ValueError(f"{words} gives infinite or NaN features for crops of {size} pixels; use other options")


@torch.no_grad()
def _features(network: nn.Module, size: int) -> Any:
    shape, generator = (2, channels_of(network), size, size), torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator, device="cpu")
    return network(images.to(next(network.parameters(), images).device))


def sizes_near(network: nn.Module, size: int) -> str:
    """In words, which sizes near a refused one the network takes, found by trying."""
    below = sorted({size // step * step for step in STEPS} - {0, size}, reverse=True)
    above = sorted({-(-size // step) * step for step in STEPS} - {size})
    near = [found for sizes in (below, above) if (found := next((s for s in sizes if _takes(network, s)), None))]
    if near:
        return f"; near it, it takes {' and '.join(map(str, near))}"
    native = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 0, 0))[-1]
    return f"; as built it takes {native} pixels" if native and _takes(network, native) else ""


def _takes(network: nn.Module, size: int) -> bool:
    try:
        _features(network, size)
    except Exception:
        return False
    return True


def _shape(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(list(output.shape))
    return f"{len(output)} outputs" if isinstance(output, list | tuple | dict) else f"a {type(output).__name__}"
