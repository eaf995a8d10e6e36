"""Backbones of torchvision, transformers and the user's own code: exports load in that code, with our features."""

import contextlib
import importlib.util
import sys

import pytest
import torch

from evaluation.backbones import open_backbone
from export.__main__ import export, main
from model.backbone import backbone_of, build_backbone
from model.weights import load_weights
from support.exports import TINY_RESNET, built_by, difference, make_run, refused

transformers = importlib.util.find_spec("transformers") is not None
needed = pytest.mark.skipif(not transformers, reason="needs transformers")

OWN = """
from torch import nn

class Small(nn.Sequential):
    def __init__(self, width):
        layers = nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*layers)

def small(width=8):
    open("{ran}", "a").write("x")
    return Small(width)
"""
TORCHVISION = ("torchvision:shufflenet_v2_x0_5", {}, 64)
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
OF_TRANSFORMERS = ("transformers:vit", {**VIT, "image_size": 32, "patch_size": 8}, 32)
MINE = ("exported_nets:small", {"width": 12}, 32)


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A file that the user's function writes to when it runs; the function is on Python's path."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "exported_nets.py").write_text(OWN.format(ran=folder / "ran"))
    sys.path.insert(0, str(folder))
    yield folder / "ran"
    sys.path.remove(str(folder))
    sys.modules.pop("exported_nets", None)


@pytest.fixture
def run_of(trained, code, tmp_path):
    trained(*TINY_RESNET)  # for its process group

    def make(network):
        return make_run(tmp_path / "run", *network)

    return make


networks = pytest.mark.parametrize(
    "network",
    [TORCHVISION, pytest.param(OF_TRANSFORMERS, marks=needed), MINE],
    ids=["torchvision", "transformers", "own"],
)


def own_of(network):
    return network[0] if network is MINE else ""


@networks
def test_weights_load_in_the_networks_own_code_and_lead_back(run_of, tmp_path, network):
    run, ours = run_of(network)
    lines = export(run, tmp_path / "folder", "safetensors", own=own_of(network))
    theirs = built_by(lines, tmp_path / "folder")
    if network is OF_TRANSFORMERS:

        def features(images):
            return theirs(images).last_hidden_state[:, 0]
    else:
        features = theirs
    assert difference(ours.backbone, features, (2, 3, network[2], network[2])) < 1e-6
    export(run, tmp_path / "swav.pth", "swav", own=own_of(network))
    for path in (tmp_path / "folder", tmp_path / "swav.pth"):
        fresh = backbone_of({"backbone": network[0], "options": network[1]}, own_code=True)
        load_weights(fresh, path)
        assert all(torch.equal(value, ours.backbone.state_dict()[key]) for key, value in fresh.state_dict().items())


@networks
@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("format", ["torchscript", "pt2", "onnx"])
def test_programs_give_the_same_features(run_of, tmp_path, network, format):
    run, ours = run_of(network)
    out, names = tmp_path / {"torchscript": "x.pt", "pt2": "x.pt2", "onnx": "x.onnx"}[format], {}
    lines = export(run, out, format, own=own_of(network))
    names["images"] = torch.randn(3, 3, network[2], network[2]).numpy()
    with contextlib.chdir(tmp_path):
        exec("\n".join(lines), names)

    def features(images):
        if format != "onnx":
            return names["network"](images)
        return torch.from_numpy(names["session"].run(["features"], {"images": images.numpy()})[0])

    assert difference(ours.backbone, features, (3, 3, network[2], network[2])) < 1e-4


def test_torchvision_gets_its_own_state_dict(run_of, tmp_path):
    run, ours = run_of(TORCHVISION)
    theirs = built_by(export(run, tmp_path / "x.pth", "torchvision"), tmp_path)
    assert difference(ours.backbone, theirs, (2, 3, 64, 64), (1, 3, 96, 64)) < 1e-6
    fresh = build_backbone(TORCHVISION[0])
    load_weights(fresh, tmp_path / "x.pth")
    assert torch.equal(fresh.conv1[0].weight, ours.backbone.conv1[0].weight)


@needed
def test_transformers_gets_a_folder_for_its_automodel(run_of, tmp_path):
    run, ours = run_of(OF_TRANSFORMERS)
    lines = export(run, tmp_path / "folder", "transformers")
    names = {"images": torch.randn(2, 3, 32, 32)}
    with contextlib.chdir(tmp_path), torch.no_grad():
        exec("\n".join(lines), names)
        assert (names["features"] - ours.backbone(names["images"])).abs().max() < 1e-6
    again = open_backbone(f"{tmp_path / 'folder'}@transformers:{tmp_path / 'folder'}").network.eval()
    assert difference(ours.backbone, again, (2, 3, 32, 32)) < 1e-6


@pytest.mark.parametrize("format", ["timm", "torchvision", "transformers"])
def test_libraries_that_have_no_such_network_are_refused(run_of, tmp_path, capsys, format):
    run, _ = run_of(MINE)
    line = refused(capsys, f"{run}@{MINE[0]}", tmp_path / "x", "--format", format)
    if format == "transformers" and not transformers:
        assert "needs transformers" in line
    else:
        assert (
            "no counterpart in" in line
            and "use one of these formats: swav, safetensors, onnx, torchscript, pt2" in line
        )


def test_no_file_makes_swave_run_the_function_that_it_names(run_of, tmp_path, capsys, code):
    run, _ = run_of(MINE)
    code.unlink()
    sys.modules.pop("exported_nets", None)
    wanted = f"{run}@exported_nets:small"
    line = refused(capsys, run, tmp_path / "x", "--format", "safetensors")
    assert "swave runs no code because a file names it" in line and line.rstrip().endswith(wanted)
    with pytest.raises(ValueError, match="swave runs no code because a file names it"):
        open_backbone(str(run))
    assert not code.exists() and "exported_nets" not in sys.modules

    assert main([wanted, str(tmp_path / "folder"), "--format", "safetensors"]) == 0
    assert code.exists()
    code.unlink()
    for path in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        with pytest.raises(ValueError, match="swave runs no code because a file names it"):
            open_backbone(str(path))
    assert not code.exists()
    ours = open_backbone(wanted)
    again = open_backbone(f"{tmp_path / 'folder'}@exported_nets:small")
    assert ours.architecture.startswith("exported_nets:small {'width': 12}, features ")
    assert difference(ours.network, again.network, (2, 3, 32, 32)) == 0
