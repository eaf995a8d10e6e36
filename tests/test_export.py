"""Exported weights, loaded by the libraries that they are for, give our features; mistakes are one line."""

import contextlib
import json
import os
import pickle
import pickletools
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors import safe_open
from test_model_golden import SHAPES, fill

from config.recipe import ROOT, load_config
from launch import export_formats
from launch.checkpoint import save_checkpoint
from launch.export import FORMATS, export, main
from launch.export_detection import resnet_settings
from model.backbone import build_backbone
from model.lars import LARS, parameter_groups
from model.segments import Layout
from model.swav import SwAV
from model.weights import load_weights

TINY_RESNET = ("resnet", {"block": "basic", "layers": [1, 1], "base_width": 8, "stem": "small"}, 16)
TINY_VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}, 32)
TINY_CONVNEXT = ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, 64)
RESNET18 = ("resnet18", {}, 64)
KNN = 0.8125


def optimizer_of(network):
    optimizer = LARS(parameter_groups(network), lr=0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    optimizer.layout = Layout.of_whole(optimizer.param_groups, names)
    return optimizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Small networks, each made once: backbone, options, crop size -> run's directory, network in eval mode."""
    store, runs = tmp_path_factory.mktemp("store") / "store", {}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)

    def make(backbone, options, size):
        if backbone not in runs:
            runs[backbone] = make_run(tmp_path_factory.mktemp("run"), backbone, options, size)
        return runs[backbone]

    yield make
    torch.distributed.destroy_process_group()


def make_run(directory, backbone, options, size):
    """A run's directory with a checkpoint at step 7, and its network: odd weights and batch-norm statistics."""
    config = load_config(["config/demo.yaml", f"model.backbone={backbone}", f"crops.global.size={size}"])
    config.model = {
        **config.model,
        "options": options,
        "hidden_dim": 16,
        "embedding_dim": 8,
        "prototypes": 12,
        "heads": 1,
    }
    network = SwAV(build_backbone(backbone, **options), 16, 8, 12)
    fill(network)
    state = {
        "step": 7,
        "images": 68,
        "loader": {"epoch": 3, "samples": 0},
        "config": OmegaConf.to_container(config),
    }
    optimizer = optimizer_of(network)
    save_checkpoint(directory / "checkpoints", state, network, optimizer, None, keep=2)
    (directory / "summary.json").write_text(json.dumps({"steps": 7, "knn": KNN}))
    return directory, network.eval()


@torch.no_grad()
def difference(ours, theirs, *shapes):
    """Largest difference of features, relative to the largest feature."""
    found = []
    for shape in shapes:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        expected, features = ours(images), theirs(images)
        assert features.shape == expected.shape
        found.append(float((features - expected).abs().max() / expected.abs().max()))
    return max(found)


def built_by(code, folder):
    """What the code that an export gives to its users builds, run where the file lies."""
    names = {}
    with contextlib.chdir(folder):
        exec("\n".join(code), names)
    assert not names["network"].training
    return names["network"]


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


def test_any_backbone_of_timm_is_exported_as_it_is(trained, tmp_path):
    run, ours = trained(*TINY_CONVNEXT)
    theirs = built_by(export(run, tmp_path / "weights.pth", "timm"), tmp_path)
    assert difference(ours.backbone, theirs, (2, 3, 64, 96)) == 0


@pytest.mark.parametrize("network", [TINY_RESNET, TINY_VIT], ids=["resnet", "vit"])
def test_published_layout_comes_back_with_heads_and_prototypes(trained, tmp_path, network):
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
    found = torch.load(tmp_path / "weights.pth.tar", weights_only=True)["state_dict"]
    expected = {f"module.{key}": shape for key, shape in SHAPES["resnet50"].items()}
    assert found.keys() == expected.keys()
    of_backbone = [key for key in expected if "projection_head" not in key and "prototypes" not in key]
    assert all(list(found[key].shape) == expected[key] for key in of_backbone)  # the test's heads are smaller


@pytest.mark.parametrize("network", [TINY_RESNET, RESNET18, TINY_VIT], ids=["resnet", "resnet18", "vit"])
def test_safetensors_load_in_the_lines_of_their_model_card(trained, tmp_path, network):
    run, ours = trained(*network)
    code = export(run, tmp_path / "model", "safetensors")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "\n".join(code) in card and len(code) == 3
    size = network[2]
    theirs = built_by(code, tmp_path / "model")
    assert difference(ours.backbone, theirs, (2, 3, size, size)) < 1e-5


def test_model_card_and_header_tell_recipe_data_score_and_input(trained, tmp_path):
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


def test_score_of_another_step_is_not_this_checkpoints(tmp_path, trained):
    run, _ = trained(*TINY_RESNET)
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 8, "knn": KNN}))
    export(tmp_path, tmp_path / "model", "safetensors")
    assert "not measured at this checkpoint" in (tmp_path / "model" / "README.md").read_text()


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


# ---- detectron2 -------------------------------------------------------------------------------------------

# Outputs, blocks and 3x3 channels of the stages res2 to res5 of ResNet-50, as detectron2 names and builds them.
RES_STAGES = {"res2": (256, 3, 64), "res3": (512, 4, 128), "res4": (1024, 6, 256), "res5": (2048, 3, 512)}
NORMS = ("weight", "bias", "running_mean", "running_var")


def names_of_detectron2(factor=1):
    """detectron2's ResNet-50 with FrozenBN: its keys and shapes, written down from its modeling/backbone/resnet.py."""
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
    """A key of torchvision's ResNet from one of detectron2's."""
    name = name.removeprefix("stem.").replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    name = re.sub(r"^res(\d)", lambda stage: f"layer{int(stage[1]) - 1}", name)
    return re.sub(r"conv(\d)\.norm", r"bn\1", name)


def test_detectron2_finds_its_names_and_shapes_and_our_features_lie_under_them(trained, tmp_path):
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
    told = yaml.safe_load("\n".join(lines))
    assert told["MODEL"]["RESNETS"] == {"DEPTH": 50, "STRIDE_IN_1X1": False, "NORM": "SyncBN"}
    assert told["MODEL"]["PIXEL_MEAN"] == pytest.approx([255 * 0.286] * 3)  # the demo's, from 0 to 1
    assert told["INPUT"]["FORMAT"] == "RGB"


def test_detr_builds_with_frozen_batch_norm_what_torchvisions_layout_fills(trained, tmp_path):
    import torchvision
    from torchvision.ops import FrozenBatchNorm2d  # DETR has a copy of it

    run, ours = trained("resnet50", {}, 64)
    export(run, tmp_path / "backbone.pth", "torchvision")
    theirs = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    found = theirs.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True), strict=False)
    assert found.missing_keys == ["fc.weight", "fc.bias"] and not found.unexpected_keys
    theirs.fc = torch.nn.Identity()
    assert difference(ours.backbone, theirs.eval(), (2, 3, 64, 96)) < 1e-5


def test_a_wide_resnet_tells_detectron2_its_widths():
    with torch.device("meta"):
        backbone = build_backbone("resnet50w2")
    assert resnet_settings(backbone) == {
        "DEPTH": 50, "STRIDE_IN_1X1": False, "STEM_OUT_CHANNELS": 128, "WIDTH_PER_GROUP": 128, "RES2_OUT_CHANNELS": 512,
    }  # fmt: skip
    shapes = {key: tuple(value.shape) for key, value in backbone.state_dict().items() if "num_batches" not in key}
    assert names_of_detectron2(2) == {name: shapes[to_torchvision(name)] for name in names_of_detectron2(2)} and len(
        shapes
    ) == len(names_of_detectron2(2))


def test_the_pickle_names_nothing_that_an_older_numpy_has_not(trained, tmp_path):
    export(trained(*RESNET18)[0], tmp_path / "backbone.pkl", "detectron2")
    named = [
        argument for code, argument, _ in pickletools.genops((tmp_path / "backbone.pkl").read_bytes())
        if code.name in ("SHORT_BINUNICODE", "BINUNICODE") and argument.startswith("numpy")
    ]  # fmt: skip
    assert named == ["numpy"]


@pytest.mark.parametrize("network", [TINY_RESNET, TINY_VIT], ids=["resnet", "vit"])
def test_what_detectron2_does_not_build_is_one_line(trained, tmp_path, capsys, network):
    line = refused(capsys, trained(*network)[0], tmp_path / "x.pkl", "--format", "detectron2")
    assert "is none that detectron2 builds" in line and not os.listdir(tmp_path)
    assert "suffix .pkl" in refused(capsys, trained(*network)[0], tmp_path / "x.pth", "--format", "detectron2")


# ---- what is written, and what is refused ----------------------------------------------------------------


def refused(capsys, *arguments):
    """The one line that the command says before it ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out
    assert said.err.startswith("swave: ") and said.err.count("\n") == 1
    return said.err


def test_command_says_how_to_load_what_it_wrote(trained, tmp_path, capsys):
    run, _ = trained(*RESNET18)
    checkpoint = run / "checkpoints" / "step-000000007"
    assert main([str(checkpoint), str(tmp_path / "sub" / "x.pth"), "--format", "torchvision"]) == 0
    assert "network = torchvision.models.resnet18().eval()" in capsys.readouterr().out
    assert os.listdir(tmp_path / "sub") == ["x.pth"]


def test_no_checkpoint_is_one_line(tmp_path, capsys):
    out = tmp_path / "x.pth"
    assert "no such folder" in refused(capsys, tmp_path / "nowhere", out, "--format", "swav")
    assert "no checkpoint there" in refused(capsys, tmp_path, out, "--format", "swav")
    assert "CKPT is not set" in refused(capsys, "", out, "--format", "swav")
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
    optimizer = optimizer_of(network)
    path = save_checkpoint(tmp_path / "checkpoints", {"step": 1, **change}, network, optimizer, None, keep=2)
    assert "tells of no network" in refused(capsys, path, tmp_path / "x", "--format", "swav")


def test_unknown_format_is_one_line_with_the_known_ones(trained, tmp_path, capsys):
    line = refused(capsys, trained(*TINY_RESNET)[0], tmp_path / "x.pb", "--format", "tensorflow")
    assert "'tensorflow' is unknown" in line and all(name in line for name in FORMATS)


@pytest.mark.parametrize(
    ("network", "format", "others"),
    [
        (TINY_RESNET, "torchvision", "swav, safetensors, onnx"),
        (TINY_RESNET, "timm", "swav, safetensors, onnx"),
        (TINY_CONVNEXT, "torchvision", "timm, swav, safetensors, onnx"),
    ],
)
def test_no_counterpart_is_one_line_with_the_formats_that_do(trained, tmp_path, capsys, network, format, others):
    line = refused(capsys, trained(*network)[0], tmp_path / "x.pth", "--format", format)
    assert f"no counterpart in {format}" in line and line.endswith(f"these formats take it: {others}\n")
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
    monkeypatch.setattr(export_formats, "ONNX_PACKAGES", ("onnx", "nowhere_onnxscript"))
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
        assert "no export of this format" in refused(capsys, run, folder, "--format", format, "--force")
    assert (folder / "notes.txt").exists() and os.listdir(tmp_path) == ["model"]


def test_what_fails_half_way_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(_trained, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(export_formats.WRITERS, "swav", fail)
    with pytest.raises(OSError, match="No space"):
        export(trained(*TINY_RESNET)[0], tmp_path / "x.pth", "swav")
    assert not os.listdir(tmp_path)


def test_help_needs_no_torch():
    code = "import sys, launch.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
