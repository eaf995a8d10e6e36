"""Writes a backbone as a program of torch, which needs no code of ours to run: TorchScript, or torch.export's pt2."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from config.groups import sizes_of_crops
from export.counterparts import TOLERANCE
from model.sizes.trial import channels_of
from training.trained_network import Trained


def write_torchscript(trained: Trained, path: Path) -> list[str]:
    """Write a traced network for torch.jit.load; returns the lines that load it."""
    backbone, side = trained.network.backbone, _side(trained)
    content = io.BytesIO()  # on a full disk, torch raises errors that do not say why
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of branches on sizes, which the comparison of features judges
        try:
            torch.jit.save(torch.jit.trace(backbone, images(backbone, 2, side, side), check_trace=False), content)
        except Exception as error:  # of many kinds, depending on the network
            raise _untraceable("torchscript", error) from None
        words = _checked(backbone, torch.jit.load(io.BytesIO(content.getbuffer())), side, "torchscript")
    path.write_bytes(content.getbuffer())
    return ["import torch", f'network = torch.jit.load("{path.name}")  # of images {words}']


def write_pt2(trained: Trained, path: Path) -> list[str]:
    """Write a program of torch.export for torch.export.load; returns the lines that load it."""
    backbone, side = trained.network.backbone, _side(trained)
    error: Exception | None = None
    for axes in ((0, 2, 3), (0,)) if takes_any_size(backbone) else ((0,),):
        sizes, content = ({axis: torch.export.Dim.AUTO for axis in axes},), io.BytesIO()
        try:
            torch.export.save(
                torch.export.export(backbone, (images(backbone, 2, side, side),), dynamic_shapes=sizes), content
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a read-only buffer, which is only read
                network = torch.export.load(io.BytesIO(content.getbuffer())).module()
            words = _checked(backbone, network, side, "pt2")
        except Exception as failed:  # of many kinds, depending on what the network computes with its sizes
            error = failed
            continue
        path.write_bytes(content.getbuffer())
        return ["import torch", f'network = torch.export.load("{path.name}").module()  # of images {words}']
    assert error is not None
    raise _untraceable("pt2", error) from None


def takes_any_size(backbone: nn.Module) -> bool:
    """Whether a trace of the backbone may run with other sizes than its own; attention fixes the positions."""
    return not any(re.search("attention|attn", type(module).__name__, re.I) for module in backbone.modules())


def images(backbone: nn.Module, batch: int, height: int, width: int) -> Tensor:
    """Noise [batch, channels, height, width] for the backbone, float32, the same in each call."""
    shape = batch, channels_of(backbone), height, width
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _side(trained: Trained) -> int:
    return sizes_of_crops(trained.config["crops"])[0]


@torch.no_grad()
def _checked(backbone: nn.Module, network: Callable[[Tensor], Tensor], side: int, format: str) -> str:
    """The shape of the images that the program takes, in words. Raises ValueError unless it gives the backbone's
    features for another batch than in tracing."""
    if not _equal(backbone, network, images(backbone, 3, side, side)):
        raise ValueError(
            f"format {format}: the program gives other features than this backbone; use format safetensors"
        )
    try:
        if takes_any_size(backbone) and _equal(backbone, network, images(backbone, 3, side + 32, side + 64)):
            return f"[batch, {channels_of(backbone)}, height, width]"
    except Exception:  # a shape that was traced as a constant
        pass
    return f"[batch, {channels_of(backbone)}, {side}, {side}]"


def _equal(backbone: nn.Module, network: Callable[[Tensor], Tensor], given: Tensor) -> bool:
    expected, features = backbone(given), network(given)
    return expected.shape == features.shape and bool(
        (features - expected).abs().max() <= TOLERANCE * expected.abs().max()
    )


def _untraceable(format: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"format {format}: torch cannot trace this backbone ({reason}); use format safetensors")
