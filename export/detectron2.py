"""Writes a backbone for detectron2: a pickled file with detectron2's key names, which its checkpointer reads.

By default detectron2 puts a bottleneck's stride on the first 1x1 convolution (STRIDE_IN_1X1), reads images as BGR, and
subtracts PIXEL_MEAN from values up to 255. The configuration that the writer returns sets all three. detectron2's
FrozenBN has the same four tensors as batch norm, so the file serves FrozenBN, BN and SyncBN. For DETR use format
torchvision.
"""

from __future__ import annotations

import copyreg
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from model.resnet import ResNet
from training.trained_network import Trained

# blocks of the four stages -> MODEL.RESNETS.DEPTH
DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}


def write_detectron2(trained: Trained, path: Path) -> list[str]:
    """Write a pickle of {"model": arrays by detectron2's names, "__author__", "matching_heuristics"}.

    Returns the lines of a configuration that loads it. Raises ValueError (one line) if detectron2 cannot build the same
    network.
    """
    backbone = trained.network.backbone
    settings = resnet_settings(backbone) if isinstance(backbone, ResNet) else None
    if settings is None:
        raise ValueError(
            f"detectron2 cannot build backbone {trained.backbone_name} (it has ResNet-18/34, ResNet-50/101/152 of any "
            "width, 7x7 stem); use one of these formats: swav, safetensors, onnx, torchscript, pt2"
        )
    model = {key: np.ascontiguousarray(value) for key, value in detectron2_names(backbone.state_dict()).items()}
    with path.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=4)
        pickler.dispatch_table = copyreg.dispatch_table.copy()
        pickler.dispatch_table[np.ndarray] = _plain_array
        pickler.dump({"model": model, "__author__": "swave", "matching_heuristics": True})
    return configuration(path.name, settings, trained.config["crops"]["mean"], trained.config["crops"]["std"])


def resnet_settings(backbone: ResNet) -> dict[str, Any] | None:
    """The settings MODEL.RESNETS with which detectron2 builds this network; None if it cannot."""
    stages = [backbone.get_submodule(f"layer{stage + 1}") for stage in range(backbone.stages)]
    block = "bottleneck" if hasattr(stages[0].get_submodule("0"), "conv3") else "basic"
    depth = DEPTHS.get((block, tuple(len(list(stage.children())) for stage in stages)))
    width, _, *kernel = backbone.conv1.weight.shape
    if depth is None or kernel != [7, 7] or (block == "basic" and width != 64):
        return None
    settings: dict[str, Any] = {"DEPTH": depth, "STRIDE_IN_1X1": False}
    if block == "basic":
        return {**settings, "RES2_OUT_CHANNELS": 64}
    if width == 64:
        return settings
    return {**settings, "STEM_OUT_CHANNELS": width, "WIDTH_PER_GROUP": width, "RES2_OUT_CHANNELS": 4 * width}


def detectron2_names(weights: Mapping[str, Tensor]) -> dict[str, Float[np.ndarray, ...]]:
    """A ResNet's tensors by detectron2's names: layer1.0.bn1.bias becomes res2.0.conv1.norm.bias. The counters of batch
    norm are left out: detectron2's FrozenBN has no counters."""
    renamed = {}
    for key, value in weights.items():
        if key.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^layer(\d)\.", lambda stage: f"res{int(stage[1]) + 1}.", key)
        name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        renamed[name if name.startswith("res") else f"stem.{name}"] = value.detach().cpu().float().numpy()
    return renamed


def configuration(weights: str, settings: Mapping[str, Any], mean: list[float], std: list[float]) -> list[str]:
    """YAML lines of a detectron2 configuration for the file `weights`. mean, std: per channel of RGB in [0, 1]."""
    return [
        "MODEL:  # in a detectron2 configuration, after its _BASE_",
        f'  WEIGHTS: "{weights}"',
        f"  PIXEL_MEAN: {[round(255 * float(value), 3) for value in mean]}  # RGB",
        f"  PIXEL_STD: {[round(255 * float(value), 3) for value in std]}",
        "  BACKBONE: {FREEZE_AT: 0}",
        f"  RESNETS: {{{', '.join(f'{key}: {value}' for key, value in settings.items())}, NORM: SyncBN}}",
        "INPUT:",
        "  FORMAT: RGB",
    ]


def _plain_array(array: np.ndarray) -> tuple[Any, ...]:
    """A form of an array that every numpy unpickles: numpy 2 names a module that numpy before 1.26 does not have."""
    return np.ndarray, (array.shape, array.dtype.str, bytearray(array.tobytes()))
