"""Files of weights in evaluation and export: values that are not finite, and ResNets with the same tensors."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evaluation.backbones import open_backbone
from export.__main__ import export
from support.evaluations import mistake, published_file, published_network


def test_a_value_that_is_not_finite_is_named_wherever_weights_are_read(tmp_path, run):
    path = published_file(tmp_path / "swav.pth", published_network())
    weights = torch.load(path, weights_only=True)["state_dict"]
    weights["module.layer2.0.bn1.running_var"][3] = float("nan")
    torch.save({"state_dict": weights}, path)
    with pytest.raises(ValueError, match=r"swav\.pth: backbone\.layer2\.0\.bn1\.running_var of .* infinite or NaN"):
        open_backbone(str(path))
    copied = shutil.copytree(run, tmp_path / "copied")
    (checkpoint,) = (copied / "checkpoints").glob("step-*")
    (file,) = checkpoint.glob("rank-*.safetensors")
    tensors = load_file(file)
    name = next(key for key in tensors if key.startswith("master/") and "conv1.weight" in key)
    tensors[name].view(-1)[0] = float("inf")
    with safe_open(file, "pt") as opened:
        save_file(tensors, file, metadata=opened.metadata())
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert file.name in str(manifest)
    (checkpoint / "manifest.json").write_text(
        json.dumps(manifest).replace(digest_in(manifest, file.name), hashlib.sha256(file.read_bytes()).hexdigest())
    )
    for read in (open_backbone, lambda word: export(Path(word), tmp_path / "out.pth", "swav")):
        with pytest.raises(ValueError, match=r"checkpoint .*conv1\.weight.* infinite or NaN"):
            read(str(copied))


def test_features_that_are_not_finite_give_no_figure(tmp_path, data, capsys):
    path = published_file(tmp_path / "swav.pth", published_network())
    weights = torch.load(path, weights_only=True)["state_dict"]
    weights["module.layer2.0.bn1.running_var"] -= 10  # finite, but its root is not
    torch.save({"state_dict": weights}, path)
    places = ["--tables", tmp_path / "tables", "--cache", "none"]
    line = mistake(capsys, path, data, "--backend", "torchvision", "--size", 32, *places)
    assert line.startswith(f"swave: {path}: the features of 90 of 90 images hold infinite or NaN values")


def digest_in(manifest, name):
    """The SHA-256 of a file in a checkpoint's manifest."""
    return re.search(rf'"{name}".*?([0-9a-f]{{64}})', json.dumps(manifest))[1]


@pytest.mark.parametrize("name", ["resnetblur50-84f4748f.pth", "resnetaa50_a1h.pth", "my_antialiased_resnet50.pth"])
def test_a_file_called_antialiased_is_not_taken_for_a_plain_resnet(tmp_path, name):
    path = published_file(tmp_path / name, published_network())
    with pytest.raises(ValueError, match=r"pools otherwise than resnet bottleneck .* name the network"):
        open_backbone(str(path))


def test_a_resnet_without_a_name_says_how_it_was_read(tmp_path):
    lines = []
    open_backbone(str(published_file(tmp_path / "swav.pth", published_network())), say=lines.append)
    assert "read as resnet bottleneck 1-1-1-1, width 16, by its shapes (FILE@timm:NAME names another" in lines[0]
    weights = torch.load(tmp_path / "swav.pth", weights_only=True)["state_dict"]
    weights["module.maxpool.filt"] = torch.ones(16, 1, 3, 3)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="an anti-aliased ResNet"):
        open_backbone(str(tmp_path / "other.pth"))
