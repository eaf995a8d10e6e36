"""Exported weights give the same features when other libraries load them; mistakes are one line."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from config.recipe import ROOT
from export import formats as export_formats
from export import onnx_graph
from export.__main__ import FORMATS, export, main
from model.backbone import build_backbone
from model.swav import SwAV
from model.weights import load_weights
from support.exports import (
    KNN,
    RESNET18,
    TINY_CONVNEXT,
    TINY_RESNET,
    TINY_VIT,
    built_by,
    difference,
    make_run,
    refused,
    save_network,
)
from support.golden import SHAPES
from support.programs import run_module


@pytest.mark.parametrize("format", ["torchvision", "timm"])
@pytest.mark.parametrize("network", [RESNET18, TINY_VIT], ids=["resnet18", "vit"])
def test_state_dict_gives_our_features_in_its_library(trained, tmp_path, format, network):
    run, ours = trained(*network)
    code = export(run, tmp_path / "weights.pth", format)
    theirs = built_by(code, tmp_path)
    assert type(theirs).__module__.startswith(format)
    size = network[2]
    assert difference(ours.backbone, theirs, (2, 3, size, size)) < 1e-5


@pytest.mark.parametrize("format", ["torchvision", "timm"])
def test_resnet50_loads_by_name_and_misses_the_classifier_alone(trained, tmp_path, format):
    import timm
    import torchvision

    run, ours = trained("resnet50", {}, 64)
    export(run, tmp_path / "weights.pth", format)
    weights = torch.load(tmp_path / "weights.pth", weights_only=True)
    if format == "torchvision":
        theirs = torchvision.models.resnet50()
        keys = theirs.load_state_dict(weights, strict=False)
        assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys
        theirs.fc = torch.nn.Identity()
    else:
        theirs = timm.create_model("resnet50", num_classes=0)
        theirs.load_state_dict(weights)
    assert difference(ours.backbone, theirs.eval(), (2, 3, 64, 96)) < 1e-5


def test_any_backbone_of_timm_is_exported_unchanged(trained, tmp_path):
    run, ours = trained(*TINY_CONVNEXT)
    theirs = built_by(export(run, tmp_path / "weights.pth", "timm"), tmp_path)
    assert difference(ours.backbone, theirs, (2, 3, 64, 96)) == 0


@pytest.mark.parametrize("network", [TINY_RESNET, TINY_VIT], ids=["resnet", "vit"])
def test_published_layout_keeps_heads_and_prototypes(trained, tmp_path, network):
    run, ours = trained(*network)
    export(run, tmp_path / "weights.pth.tar", "swav")
    torch.manual_seed(1)
    theirs = SwAV(build_backbone(network[0], **network[1]), 16, 8, 12).eval()
    load_weights(theirs, tmp_path / "weights.pth.tar")
    crops = [torch.randn(4, 3, network[2], network[2])]
    for one, other in zip(ours(crops, 2)[:2], theirs(crops, 2)[:2], strict=True):
        assert torch.equal(one, other)


def golden_file(path, wrapped):
    """A ResNet-50 in the published checkpoints' layout: bare as in the model zoo, or as its trainer saves it."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"module.{key}": torch.tensor(5) if not shape else torch.randn(shape, generator=generator)
        for key, shape in SHAPES["resnet50"].items()
    }
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content = {"epoch": 400, "state_dict": weights, "optimizer": optimizer} if wrapped else weights
    torch.save(content, path, _use_new_zipfile_serialization=wrapped)
    return weights


@pytest.mark.parametrize("wrapped", [True, False], ids=["trainer", "bare"])
def test_published_resnet50_loads_for_a_warm_start(tmp_path, wrapped):
    weights = golden_file(tmp_path / "swav.pth.tar", wrapped)
    network = SwAV(build_backbone("resnet50"), 2048, 128, 3000)
    load_weights(network, tmp_path / "swav.pth.tar")
    state = network.state_dict()
    assert len(state) == len(weights)
    for key, value in weights.items():
        name = key.removeprefix("module.")
        assert torch.equal(state[name if name.startswith(("proj", "proto")) else f"backbone.{name}"], value)


def test_published_layout_has_the_published_names_and_shapes(trained, tmp_path):
    run, _ = trained("resnet50", {}, 64)
    export(run, tmp_path / "weights.pth.tar", "swav")
    weights = torch.load(tmp_path / "weights.pth.tar", weights_only=True)["state_dict"]
    expected = {f"module.{key}": shape for key, shape in SHAPES["resnet50"].items()}
    assert weights.keys() == expected.keys()
    of_backbone = [key for key in expected if "projection_head" not in key and "prototypes" not in key]
    assert all(list(weights[key].shape) == expected[key] for key in of_backbone)  # the test's heads are smaller


@pytest.mark.parametrize("network", [TINY_RESNET, RESNET18, TINY_VIT], ids=["resnet", "resnet18", "vit"])
def test_safetensors_load_in_the_lines_of_their_model_card(trained, tmp_path, network):
    run, ours = trained(*network)
    code = export(run, tmp_path / "model", "safetensors")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "\n".join(code) in card and len(code) == 3
    size = network[2]
    theirs = built_by(code, tmp_path / "model")
    assert difference(ours.backbone, theirs, (2, 3, size, size)) < 1e-5


def test_model_card_and_header_hold_recipe_data_score_and_input(trained, tmp_path):
    run, _ = trained(*TINY_RESNET)
    export(run, tmp_path / "model", "safetensors")
    card = (tmp_path / "model" / "README.md").read_text()
    for text in (
        "data/fashion-mnist",
        "68 images",
        "3 epochs, 7 steps",
        "81.25%",
        "16 x 16",
        f"torch {torch.__version__}",
    ):
        assert text.split("+")[0] in card
    recipe = OmegaConf.create(card.split("```yaml\n")[1].split("```")[0])
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        header = file.metadata()
    assert json.loads(header["config"]) == OmegaConf.to_container(recipe)
    assert header["backbone"] == "resnet" and json.loads(header["knn"]) == KNN
    assert json.loads(header["mean"]) == OmegaConf.to_container(recipe.crops.mean)


def test_a_score_of_another_step_is_left_out(tmp_path, trained):
    run, _ = trained(*TINY_RESNET)
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 8, "knn": KNN}))
    export(tmp_path, tmp_path / "model", "safetensors")
    assert "not measured at this checkpoint" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize("network", [TINY_RESNET, TINY_VIT, TINY_CONVNEXT], ids=["resnet", "vit", "convnext"])
def test_onnx_gives_our_features_for_any_batch_and_for_convolutions_any_size(trained, tmp_path, network):
    run, ours = trained(*network)
    export(run, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (images,) = session.get_inputs()
    size = network[2]
    shapes = [(1, 3, size, size), (5, 3, size, size)]
    if network is TINY_VIT:
        assert images.shape == ["batch", 3, size, size]
    else:
        assert images.shape == ["batch", 3, "height", "width"]
        shapes += [(2, 3, size + 32, size), (3, 3, 2 * size, size + 64)]

    def theirs(images):
        return torch.from_numpy(np.asarray(session.run(["features"], {"images": images.numpy()})[0]))

    assert difference(ours.backbone, theirs, *shapes) < 1e-5
    assert json.loads(session.get_modelmeta().custom_metadata_map["feature_dim"]) == ours.backbone.feature_dim


# ---- what is written, and what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(("format", "name"), [("torchvision", "x.pth"), ("safetensors", "resnet18")])
def test_the_lines_that_the_command_prints_load_what_it_wrote(trained, tmp_path, capsys, monkeypatch, format, name):
    run, ours = trained(*RESNET18)
    checkpoint = run / "checkpoints" / "step-000000007"
    monkeypatch.chdir(tmp_path)
    assert main([str(checkpoint), f"sub/{name}", "--format", format]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert difference(ours.backbone, built_by(lines, tmp_path), (2, 3, 64, 64)) < 1e-5
    assert os.listdir(tmp_path / "sub") == [name]


@pytest.mark.parametrize("format", ["torchvision", "swav", "safetensors"])
def test_a_full_disk_is_one_line_and_leaves_nothing(trained, tmp_path, capsys, format):
    run, _ = trained(*RESNET18)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(run), str(tmp_path / "out" / "x"), "--format", format])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.value.code == 2 and "File too large" in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir(tmp_path / "out") == []


def test_no_checkpoint_is_one_line(tmp_path, capsys):
    out = tmp_path / "x.pth"
    assert "no such folder" in refused(capsys, tmp_path / "nowhere", out, "--format", "swav")
    assert "no checkpoint there" in refused(capsys, tmp_path, out, "--format", "swav")
    assert "CKPT is missing" in refused(capsys, "", out, "--format", "swav")
    assert "--format" in refused(capsys, tmp_path, out)
    assert not out.exists()


def test_damaged_checkpoint_is_one_line(trained, tmp_path, capsys):
    run, _ = trained(*TINY_RESNET)
    checkpoint = tmp_path / "checkpoints" / "step-000000007"
    checkpoint.mkdir(parents=True)
    for file in (run / "checkpoints" / "step-000000007").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= file.name == "rank-00000.safetensors"
        (checkpoint / file.name).write_bytes(content)
    assert "is damaged" in refused(capsys, checkpoint, tmp_path / "x", "--format", "swav")
    assert "no checkpoint is whole" in refused(capsys, tmp_path, tmp_path / "x", "--format", "swav")


@pytest.mark.parametrize("change", [{"config": {}}, {"config": {"model": {"backbone": "resnet18"}}}])
def test_checkpoint_without_a_network_is_one_line(tmp_path, capsys, trained, change):
    trained(*TINY_RESNET)  # for its process group
    network = SwAV(build_backbone(TINY_RESNET[0], **TINY_RESNET[1]), 16, 8, 12)
    path = save_network(tmp_path / "checkpoints", {"step": 1, **change}, network)
    assert "describes no network" in refused(capsys, path, tmp_path / "x", "--format", "swav")


def test_unknown_format_is_one_line_with_the_known_ones(trained, tmp_path, capsys):
    line = refused(capsys, trained(*TINY_RESNET)[0], tmp_path / "x.pb", "--format", "tensorflow")
    assert "'tensorflow' is unknown" in line and all(name in line for name in FORMATS)


@pytest.mark.parametrize(
    ("network", "format", "others"),
    [
        (TINY_RESNET, "torchvision", "swav, safetensors, onnx, torchscript, pt2"),
        (TINY_RESNET, "timm", "swav, safetensors, onnx, torchscript, pt2"),
        (TINY_CONVNEXT, "torchvision", "timm, swav, safetensors, onnx, torchscript, pt2"),
    ],
)
def test_a_missing_counterpart_is_an_error_that_lists_other_formats(trained, tmp_path, capsys, network, format, others):
    line = refused(capsys, trained(*network)[0], tmp_path / "x.pth", "--format", format)
    assert f"no counterpart in {format}" in line and line.endswith(f"use one of these formats: {others}\n")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"class_token": False, "global_pool": "avg"}, {"reg_tokens": 1}, {"act_layer": "relu"}, {"pre_norm": True}],
)
def test_another_kind_of_vision_transformer_is_refused_by_torchvision(trained, tmp_path, capsys, options):
    trained(*TINY_RESNET)  # for its process group
    run, _ = make_run(tmp_path / "run", TINY_VIT[0], TINY_VIT[1] | options, 32)
    assert "no counterpart in torchvision" in refused(capsys, run, tmp_path / "x.pth", "--format", "torchvision")


def test_missing_packages_are_one_line_that_says_what_to_install(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_graph, "PACKAGES", ("onnx", "nowhere_onnxscript"))
    line = refused(capsys, trained(*TINY_RESNET)[0], tmp_path / "x.onnx", "--format", "onnx")
    assert "needs nowhere_onnxscript" in line and "pip install" in line


def test_existing_out_is_refused_unless_forced(trained, tmp_path, capsys):
    run, _ = trained(*TINY_RESNET)
    out = tmp_path / "x.pth"
    out.write_text("precious")
    assert "exists" in refused(capsys, run, out, "--format", "swav")
    assert out.read_text() == "precious"
    main([str(run), str(out), "--format", "swav", "--force"])
    assert "state_dict" in torch.load(out, weights_only=True)


def test_force_replaces_an_export_and_no_other_folder(trained, tmp_path, capsys):
    run, _ = trained(*TINY_RESNET)
    folder = tmp_path / "model"
    export(run, folder, "safetensors")
    (folder / "README.md").write_text("old")
    export(run, folder, "safetensors", force=True)
    assert (folder / "README.md").read_text() != "old"
    (folder / "notes.txt").write_text("precious")
    for format in ("safetensors", "swav"):
        assert "is not an export in this format" in refused(capsys, run, folder, "--format", format, "--force")
    assert (folder / "notes.txt").exists() and os.listdir(tmp_path) == ["model"]


def test_an_export_that_fails_halfway_leaves_no_file(trained, tmp_path, monkeypatch):
    def fail(_trained, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(export_formats.WRITERS, "swav", fail)
    with pytest.raises(OSError, match="No space"):
        export(trained(*TINY_RESNET)[0], tmp_path / "x.pth", "swav")
    assert not os.listdir(tmp_path)


def test_help_needs_no_torch():
    code = "import sys, export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_the_earlier_name_of_the_module_still_exports(trained, tmp_path):
    run, _ = trained(*TINY_RESNET)
    done = run_module("launch.export", run, tmp_path / "x.pth", "--format", "swav", folder=ROOT)
    assert done.returncode == 0 and (tmp_path / "x.pth").is_file(), done.stderr
