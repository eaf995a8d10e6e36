"""Exports for Hugging Face transformers: its own classes load them, give our features, and `model.weights` reads them.

Where transformers is not installed, its answers stand in tests/golden/transformers.json (write_transformers.py).
"""

import contextlib
import importlib.util
import json

import pytest
import torch

from export.__main__ import export
from export.transformers import transformers_config
from model.backbone import build_backbone
from model.weights import in_layout, load_weights, take_weights
from support.exports import FOR_TRANSFORMERS, TINY_RESNET, make_run, refused
from support.golden import GOLDEN, det, fill

OF_TRANSFORMERS = json.loads((GOLDEN / "transformers.json").read_text())["networks"]
installed = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
networks = pytest.mark.parametrize("name", FOR_TRANSFORMERS)


def filled(name):
    backbone, options, size = FOR_TRANSFORMERS[name]
    network = build_backbone(backbone, **options).eval()
    fill(network)
    return network, size


def equal(first, second):
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@networks
def test_configuration_names_and_features_are_those_of_transformers(name):
    network, size = filled(name)
    theirs = OF_TRANSFORMERS[name]
    config = transformers_config(network, size)
    assert config.items() <= theirs["config"].items()
    written = in_layout(network.state_dict(), {key: torch.empty(shape) for key, shape in theirs["tensors"].items()})
    assert {key: list(value.shape) for key, value in written.items()} == theirs["tensors"]
    with torch.no_grad():
        features = network(det("images", (2, 3, size, size), 1))
    expected = torch.tensor(theirs["features"])
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()


@networks
def test_names_of_transformers_lead_back_to_the_same_bits(name):
    network, _ = filled(name)
    shapes = OF_TRANSFORMERS[name]["tensors"]
    written = in_layout(network.state_dict(), {key: torch.empty(shape) for key, shape in shapes.items()})
    again = build_backbone(FOR_TRANSFORMERS[name][0], **FOR_TRANSFORMERS[name][1])
    take_weights(again, written)
    assert equal(again, network)


@installed
@pytest.mark.slow(seconds=5)
@networks
@torch.no_grad()
def test_folder_loads_in_transformers_with_our_features_and_as_weights(trained, tmp_path, name):
    trained(*TINY_RESNET)  # for its process group
    backbone, options, size = FOR_TRANSFORMERS[name]
    run, ours = make_run(tmp_path / "run", backbone, options, size)
    code = export(run, tmp_path / "exported", "transformers")
    names = {"images": torch.randn(2, 3, size, size)}
    with contextlib.chdir(tmp_path):
        exec("\n".join(code), names)
    expected = ours.backbone(names["images"])
    assert (names["features"] - expected).abs().max() < 1e-5 * expected.abs().max()
    again = build_backbone(backbone, **options)
    load_weights(again, tmp_path / "exported")
    assert equal(again, ours.backbone)


@installed
def test_its_image_processor_makes_the_recipes_crop(trained, tmp_path):
    import numpy as np
    from transformers import AutoImageProcessor

    trained(*TINY_RESNET)  # for its process group
    backbone, options, size = FOR_TRANSFORMERS["ResNet"]
    run, _ = make_run(tmp_path / "run", backbone, options, size)  # evaluation.size is the crops' size
    export(run, tmp_path / "exported", "transformers")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "exported")
    pixels = processor(np.full((50, 60, 3), 255, np.uint8), return_tensors="pt")["pixel_values"]
    mean, std = processor.image_mean[0], processor.image_std[0]
    torch.testing.assert_close(pixels, torch.full((1, 3, size, size), (1 - mean) / std))


@installed
@pytest.mark.parametrize(
    ("options", "reason"), [({"act_layer": "relu"}, "other features"), ({"global_pool": "avg"}, "differs in fc_norm")]
)
def test_other_features_are_refused_with_formats_that_work(trained, tmp_path, capsys, options, reason):
    trained(*TINY_RESNET)  # for its process group
    backbone, settings, size = FOR_TRANSFORMERS["ViT"]
    run, _ = make_run(tmp_path / "run", backbone, settings | options, size)
    line = refused(capsys, run, tmp_path / "x", "--format", "transformers")
    assert reason in line and "use one of these formats: timm, swav, safetensors, onnx" in line


@pytest.mark.parametrize(
    ("backbone", "options"), [(TINY_RESNET[0], TINY_RESNET[1]), ("mobilenetv3_small_050", {}), ("resnet10t", {})]
)
def test_a_network_that_transformers_lacks_has_no_configuration(backbone, options):
    assert transformers_config(build_backbone(backbone, **options), 64) is None


def test_a_refusal_names_formats_that_work(trained, tmp_path, capsys):
    run, _ = trained(*TINY_RESNET)
    line = refused(capsys, run, tmp_path / "x", "--format", "transformers")
    if importlib.util.find_spec("transformers") is None:
        assert "needs transformers: " in line and "pip install transformers" in line
    else:
        assert "ResNets with a 7x7 stem" in line and "use one of these formats: swav, safetensors, onnx" in line
