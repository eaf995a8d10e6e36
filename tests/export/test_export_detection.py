"""Exports for detectron2 and DETR have their key names and shapes, and give the same features."""

import os
import pickle
import pickletools
import re

import numpy as np
import pytest
import torch
import yaml

from export.__main__ import export
from export.detectron2 import resnet_settings
from model.backbone import build_backbone
from support.exports import RESNET18, TINY_RESNET, TINY_VIT, difference, refused

# Outputs, blocks and 3x3 channels of the stages res2 to res5 of ResNet-50, as detectron2 names and builds them.
RES_STAGES = {"res2": (256, 3, 64), "res3": (512, 4, 128), "res4": (1024, 6, 256), "res5": (2048, 3, 512)}
NORMS = ("weight", "bias", "running_mean", "running_var")


def names_of_detectron2(factor=1):
    """detectron2's ResNet-50 with FrozenBN: keys and shapes, as its modeling/backbone/resnet.py builds them."""
    shapes = {"stem.conv1.weight": (64 * factor, 3, 7, 7)}
    shapes |= {f"stem.conv1.norm.{part}": (64 * factor,) for part in NORMS}
    entering = 64 * factor
    for stage, (leaving, blocks, middle) in RES_STAGES.items():
        leaving, middle = leaving * factor, middle * factor
        for block in range(blocks):
            layers = {"conv1": (middle, entering, 1), "conv2": (middle, middle, 3), "conv3": (leaving, middle, 1)}
            if block == 0:
                layers["shortcut"] = (leaving, entering, 1)
            for layer, (out, into, side) in layers.items():
                shapes[f"{stage}.{block}.{layer}.weight"] = (out, into, side, side)
                shapes |= {f"{stage}.{block}.{layer}.norm.{part}": (out,) for part in NORMS}
            entering = leaving
    return shapes


def to_torchvision(name):
    """The key of torchvision's ResNet for one of detectron2's."""
    name = name.removeprefix("stem.").replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    name = re.sub(r"^res(\d)", lambda stage: f"layer{int(stage[1]) - 1}", name)
    return re.sub(r"conv(\d)\.norm", r"bn\1", name)


def test_detectron2_gets_its_names_and_shapes_and_the_same_features(trained, tmp_path):
    import torchvision

    run, ours = trained("resnet50", {}, 64)
    lines = export(run, tmp_path / "backbone.pkl", "detectron2")
    with (tmp_path / "backbone.pkl").open("rb") as file:
        content = pickle.load(file, encoding="latin1")  # as detectron2 does it
    model = content.pop("model")
    assert content == {"__author__": "swave", "matching_heuristics": True}
    assert {key: value.shape for key, value in model.items()} == names_of_detectron2()
    assert all(value.dtype == np.float32 and value.flags.writeable for value in model.values())
    theirs = torchvision.models.resnet50()
    theirs.fc = torch.nn.Identity()
    missing = theirs.load_state_dict(
        {to_torchvision(key): torch.from_numpy(value) for key, value in model.items()}, strict=False
    )
    assert not missing.unexpected_keys and all("num_batches" in key for key in missing.missing_keys)
    assert difference(ours.backbone, theirs.eval(), (2, 3, 64, 96)) < 1e-5
    settings = yaml.safe_load("\n".join(lines))
    assert settings["MODEL"]["RESNETS"] == {"DEPTH": 50, "STRIDE_IN_1X1": False, "NORM": "SyncBN"}
    assert settings["MODEL"]["PIXEL_MEAN"] == pytest.approx([255 * 0.25] * 3)  # the run's, from 0 to 1
    assert settings["INPUT"]["FORMAT"] == "RGB"


def test_torchvisions_layout_fills_detrs_network_with_frozen_batch_norm(trained, tmp_path):
    import torchvision
    from torchvision.ops import FrozenBatchNorm2d  # DETR has a copy of it

    run, ours = trained("resnet50", {}, 64)
    export(run, tmp_path / "backbone.pth", "torchvision")
    theirs = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    keys = theirs.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys
    theirs.fc = torch.nn.Identity()
    assert difference(ours.backbone, theirs.eval(), (2, 3, 64, 96)) < 1e-5


def test_a_wide_resnets_settings_hold_its_widths():
    with torch.device("meta"):
        backbone = build_backbone("resnet50w2")
    assert resnet_settings(backbone) == {
        "DEPTH": 50, "STRIDE_IN_1X1": False, "STEM_OUT_CHANNELS": 128, "WIDTH_PER_GROUP": 128, "RES2_OUT_CHANNELS": 512,
    }  # fmt: skip
    shapes = {key: tuple(value.shape) for key, value in backbone.state_dict().items() if "num_batches" not in key}
    assert names_of_detectron2(2) == {name: shapes[to_torchvision(name)] for name in names_of_detectron2(2)} and len(
        shapes
    ) == len(names_of_detectron2(2))


def test_an_older_numpy_can_read_the_pickle(trained, tmp_path):
    export(trained(*RESNET18)[0], tmp_path / "backbone.pkl", "detectron2")
    named = [
        argument for code, argument, _ in pickletools.genops((tmp_path / "backbone.pkl").read_bytes())
        if code.name in ("SHORT_BINUNICODE", "BINUNICODE") and argument.startswith("numpy")
    ]  # fmt: skip
    assert named == ["numpy"]


@pytest.mark.parametrize("network", [TINY_RESNET, TINY_VIT], ids=["resnet", "vit"])
def test_backbones_that_detectron2_lacks_are_an_error_of_one_line(trained, tmp_path, capsys, network):
    line = refused(capsys, trained(*network)[0], tmp_path / "x.pkl", "--format", "detectron2")
    assert "detectron2 cannot build backbone" in line and not os.listdir(tmp_path)
    assert "suffix .pkl" in refused(capsys, trained(*network)[0], tmp_path / "x.pth", "--format", "detectron2")
