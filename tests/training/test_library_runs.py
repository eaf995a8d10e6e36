"""Runs with backbones of torchvision, transformers and the user's own code: ZeRO stages, resuming, evaluation."""

import importlib.util
import json
import math
import shutil
import sys

import pytest
import torch

from evaluation.backbones import open_backbone
from support.evaluations import evaluate, mistake
from support.tiny_runs import losses, make_workplace, train
from training.trained_network import read_trained

OWN = """
from torch import nn

class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, 2)

    def forward(self, images):
        return self.second(self.norm(self.first(images)).relu()).relu().mean((2, 3))

def small(width: int = 4):
    return Small(width)
"""
VIT = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32, patch_size: 4}"
NETWORKS = {
    "own": ("model.backbone=run_nets:small", "model.options={width: 6}"),
    "torchvision": ("model.backbone=torchvision:shufflenet_v2_x0_5", "optimizer.base_lr=0.01"),
    "transformers": ("model.backbone=transformers:vit", f"model.options={VIT}"),
}
SETTINGS = (
    "run.epochs=2",
    "checkpoint={every: 3 steps, keep: 9}",
    "pipeline.backend=torchvision",
    "evaluation.every=1",
)
# Its rounding grows with each step, in float64 two ranks agree: perf/NOTES.md, "Rounding in ShuffleNet".
SAME_UNTIL = {"torchvision": 6}
needed = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
each = pytest.mark.parametrize("name", ["own", "torchvision", pytest.param("transformers", marks=needed)])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = make_workplace(tmp_path_factory.mktemp("libraries"))
    (root / "code").mkdir()
    (root / "code" / "run_nets.py").write_text(OWN)
    sys.path.insert(0, str(root / "code"))  # processes that tests fork inherit it
    yield root
    sys.path.remove(str(root / "code"))
    sys.modules.pop("run_nets", None)


@pytest.fixture(scope="module")
def whole(workplace):
    """A function from a kind of network to the losses of its run by one process."""

    def losses_of(name):
        if not (workplace / name).exists():
            assert "k-NN" in train(workplace, name, *NETWORKS[name], *SETTINGS)
        return losses(workplace, name)

    return losses_of


def resumed(workplace, name, copy, *settings, ranks=1):
    """The losses of a run that goes on from the third step of another one."""
    shutil.copytree(workplace / name, workplace / copy)
    (workplace / copy / "summary.json").unlink()
    for path in (workplace / copy / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > 3:
            shutil.rmtree(path)
    output = train(workplace, copy, *NETWORKS[name], *SETTINGS, *settings, ranks=ranks)
    assert "resuming from" in output
    return losses(workplace, copy)


@each
@pytest.mark.slow(seconds=15)
def test_a_resumed_run_has_the_losses_of_the_whole_one(workplace, whole, name):
    expected = whole(name)
    assert len(expected) == 16 and all(math.isfinite(loss) for loss in expected.values())
    assert resumed(workplace, name, f"{name}-resumed") == pytest.approx(expected, rel=1e-5)


@each
@pytest.mark.slow(seconds=12)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_has_the_losses_of_one_process(workplace, whole, name, stage):
    expected, settings = whole(name), (f"engine.stage={stage}", "engine.sync_batch_norm=2")
    found, last = resumed(workplace, name, f"{name}-{stage}", *settings, ranks=2), SAME_UNTIL.get(name, 16)
    for step in range(1, last + 1):
        assert found[step] == pytest.approx(expected[step], rel=2e-3), step


@pytest.mark.slow(seconds=15)
@each
def test_it_is_evaluated_as_it_was_trained(workplace, whole, capsys, name, tmp_path):
    whole(name)
    word = f"{workplace / name}@run_nets:small" if name == "own" else str(workplace / name)
    images = workplace / "images"
    options = ("--cache", tmp_path / "features", "--backend", "torchvision")
    found = evaluate(capsys, word, images, *options, "--json", tmp_path / "x.json")
    assert found["results"][0]["backbone"] == word and found["results"][0]["feature_dim"] > 10
    trained = read_trained(workplace / name, "run_nets:small" if name == "own" else "").network.backbone
    again, crops = open_backbone(word).network, torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(crops), trained(crops))


@pytest.mark.slow(seconds=10)
def test_a_run_of_somebodys_code_starts_it_in_no_program(workplace, whole, capsys, tmp_path, monkeypatch):
    whole("own")
    shutil.copytree(workplace / "own", tmp_path / "run")
    (tmp_path / "run_nets.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + OWN)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "run_nets", raising=False)
    images, more = workplace / "images", ("--json", tmp_path / "x")
    for command, options in (("knn", ()), ("clusters", ("--out", tmp_path / "z"))):
        line = mistake(capsys, tmp_path / "run", images, *options, *more, command=command)
        assert line.endswith(f"name it yourself: {tmp_path / 'run'}@run_nets:small")
    (tmp_path / "run" / "summary.json").unlink()
    process = train(workplace, tmp_path / "run", *SETTINGS, wait=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "holds a run with other settings (model.backbone: run_nets:small -> resnet)" in output
    assert not (tmp_path / "ran").exists() and "run_nets" not in sys.modules
    found = evaluate(capsys, f"{tmp_path / 'run'}@run_nets:small", workplace / "images", "--json", tmp_path / "y")
    assert (tmp_path / "ran").exists() and json.dumps(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.backbone=run_nets:smal",), "has no function smal; nearest: small"),
        (("model.backbone=run_nets:small", "model.options={widht: 3}"), "has no option 'widht'"),
        (("model.backbone=torchvision:vit_b_32",), "does not take crops of 8 pixels"),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_starts(workplace, settings, message):
    process = train(workplace, "mistaken", *settings, wait=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    lines = [line for line in output.splitlines() if line.startswith("swave: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in output
    assert not (workplace / "mistaken" / "checkpoints").exists()
