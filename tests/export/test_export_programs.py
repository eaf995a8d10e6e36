"""Programs of torch give our features without our code, and every format that holds weights leads back to them."""

import contextlib
import importlib.util

import pytest
import torch

from export.__main__ import FORMATS, SUFFIXES, export
from model.backbone import build_backbone
from model.weights import load_weights
from support.exports import RESNET18, TINY_RESNET, TINY_VIT, difference, refused

PROGRAMS = ("torchscript", "pt2")
OTHERS = [format for format in FORMATS if format not in (*PROGRAMS, "onnx", "detectron2")]  # these two: docs/export.md


def leads_back(path, network, ours):
    again = build_backbone(network[0], **network[1])
    load_weights(again, path)
    one, other = again.state_dict(), ours.backbone.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("format", PROGRAMS)
@pytest.mark.parametrize("network", [TINY_RESNET, TINY_VIT], ids=["resnet", "vit"])
def test_a_program_gives_our_features_and_its_tensors_are_weights(trained, tmp_path, format, network):
    run, ours = trained(*network)
    out, size, names = tmp_path / "program.pt2", network[2], {}
    code = export(run, out, format)
    with contextlib.chdir(tmp_path):
        exec("\n".join(code), names)
    shapes = [(1, 3, size, size), (5, 3, size, size)]
    if network is TINY_VIT:
        assert code[-1].endswith(f"[batch, 3, {size}, {size}]")
    else:
        assert code[-1].endswith("[batch, 3, height, width]")
        shapes.append((2, 3, size + 32, 2 * size))
    assert difference(ours.backbone, names["network"], *shapes) < 1e-5
    assert leads_back(out, network, ours)


@pytest.mark.parametrize("format", OTHERS)
@pytest.mark.parametrize("network", [RESNET18, TINY_VIT], ids=["resnet18", "vit"])
def test_weights_of_every_format_are_the_same_bits(trained, tmp_path, format, network):
    if format == "transformers" and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    run, ours = trained(*network)
    export(run, tmp_path / "exported", format)
    assert leads_back(tmp_path / "exported", network, ours)


@pytest.mark.parametrize("format", SUFFIXES)
def test_another_suffix_is_refused_with_the_right_one(tmp_path, capsys, format):
    line = refused(capsys, tmp_path, tmp_path / "x.pth", "--format", format)
    assert f"give x{SUFFIXES[format]}" in line
