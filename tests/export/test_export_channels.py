"""Exports of networks with other channels than RGB: the other library's network gives the same features."""

import json
import re
import shutil

import onnxruntime
import pytest
import torch

from export.__main__ import export
from export.model_card import header
from export.onnx_graph import _made_smaller
from export.quantized import images_of
from support.exports import RESNET18, TINY_RESNET, TINY_VIT, built_by, difference, refused
from support.native.images import tiles, write_tiles
from training.trained_network import read_trained

pytestmark = pytest.mark.slow(seconds=3)
FOUR = {"in_chans": 4}


@pytest.mark.parametrize("format", ["torchvision", "timm"])
@pytest.mark.parametrize("network", [RESNET18, TINY_VIT], ids=["resnet18", "vit"])
def test_a_network_of_four_channels_gives_our_features_in_its_library(trained, tmp_path, format, network):
    name, options, size = network
    run, ours = trained(name, options | FOUR, size)
    theirs = built_by(export(run, tmp_path / "weights.pth", format), tmp_path)
    assert type(theirs).__module__.startswith(format)
    assert difference(ours.backbone, theirs, (2, 4, size, size)) < 1e-5


def test_a_traced_program_takes_four_channels(trained, tmp_path):
    run, ours = trained(TINY_RESNET[0], TINY_RESNET[1] | FOUR, 16)
    code = export(run, tmp_path / "weights.pt", "torchscript")
    assert "[batch, 4, height, width]" in code[-1]
    assert difference(ours.backbone, torch.jit.load(tmp_path / "weights.pt"), (2, 4, 16, 16)) < 1e-5


@pytest.fixture(scope="module")
def graph(trained, tmp_path_factory):
    """A float32 graph of images of four channels and 16 pixels, of which those of other precisions are made."""
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    export(trained(TINY_RESNET[0], TINY_RESNET[1] | FOUR, 16)[0], path, "onnx", onnx_options={"size": 16})
    return path


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 2e-2), ("int8", 0.3)])
def test_a_graph_of_each_precision_takes_four_channels_and_names_them(trained, graph, tmp_path, precision, bound):
    run, ours = trained(TINY_RESNET[0], TINY_RESNET[1] | FOUR, 16)
    images = str(write_tiles(tmp_path / "images", tiles(40, 20, high=65536)))
    data = images_of(read_trained(run), images, 16) if precision == "int8" else None
    shutil.copy(graph, tmp_path)
    if precision != "fp32":
        _made_smaller(tmp_path / "graph.onnx", precision, data)
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
    assert session.get_inputs()[0].shape == ["batch", 4, 16, 16]
    told = session.get_modelmeta().custom_metadata_map
    assert told.items() >= header(read_trained(run)).items()
    assert json.loads(told["channels"]) == 4 and json.loads(told["input_sizes"]) == [16]
    assert json.loads(told["mean"]) == [0.25] * 4 and json.loads(told["std"]) == [0.125] * 4

    def theirs(images):
        return torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])

    assert difference(ours.backbone, theirs, (2, 4, 16, 16)) < bound


def test_images_of_other_channels_do_not_calibrate(trained, tmp_path):
    run, _ = trained(TINY_RESNET[0], TINY_RESNET[1] | FOUR, 16)
    data = str(write_tiles(tmp_path / "images", tiles(4, 20, channels=2)))
    line = f"--data {data}: the images are 2 channels of uint16, and the network takes 4 channels; give others"
    with pytest.raises(ValueError, match=re.escape(line)):
        export(run, tmp_path / "x.onnx", "onnx", onnx_options={"precision": "int8", "data": data})
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("format", ["transformers", "detectron2"])
def test_formats_of_rgb_refuse_other_channels(trained, tmp_path, capsys, format):
    run, _ = trained(TINY_RESNET[0], TINY_RESNET[1] | FOUR, 16)
    out = tmp_path / ("x.pkl" if format == "detectron2" else "x")
    line = refused(capsys, run, out, "--format", format)
    assert f"format {format}: it is for RGB, and this backbone takes 4 channels; use " in line
