"""Small networks with a checkpoint each, and helpers for tests of exports."""

import contextlib
import json

import pytest
import torch
from omegaconf import OmegaConf

from config.recipe import load_config
from export.__main__ import main
from model.backbone import backbone_of
from model.optimizer.groups import parameter_groups
from model.optimizer.lars import LARS
from model.optimizer.segments import Layout
from model.swav import SwAV
from support.golden import fill
from training.checkpoint.masters import network_shapes, network_tensors
from training.checkpoint.save_load import save_checkpoint

TINY_RESNET = ("resnet", {"block": "basic", "layers": [1, 1], "base_width": 8, "stem": "small"}, 16)
TINY_VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}, 32)
TINY_CONVNEXT = ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, 64)
RESNET18 = ("resnet18", {}, 64)
KNN = 0.8125

_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
FOR_TRANSFORMERS = {  # a tiny network of each kind that Hugging Face transformers has
    "ResNet": ("resnet", {"layers": [1, 2], "base_width": 8}, 32),
    "basic ResNet": ("resnet", {"block": "basic", "layers": [1, 2], "base_width": 8}, 32),
    "ViT": ("vit_tiny_patch16_224", {**_VIT, "img_size": 32, "patch_size": 8}, 32),
    "DINOv2": ("vit_small_patch14_dinov2", {**_VIT, "img_size": 28}, 28),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {**_VIT, "img_size": 28}, 28),
    "DINOv3": ("vit_small_patch16_dinov3", _VIT, 32),
    "DINOv3 with biases": ("vit_small_patch16_dinov3_qkvb", {**_VIT, "global_pool": "token"}, 32),
    "ConvNeXt": ("convnext_tiny", {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}, 32),
    "ConvNeXt of 1 x 1 convolutions": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, 32),
}


def optimizer_of(network):
    optimizer = LARS(parameter_groups(network), lr=0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    optimizer.layout = Layout.of_whole(optimizer.param_groups, names)
    return optimizer


def save_network(directory, state, network):
    """A checkpoint of a network alone; its path."""
    optimizer = optimizer_of(network)
    state = state | network_shapes(network, optimizer)
    return save_checkpoint(directory, state, network_tensors(network, optimizer, 0, 1), keep=2)


def make_run(directory, backbone, options, size):
    """A run's directory with a checkpoint at step 7, and its network: odd weights and batch-norm statistics."""
    sizes = [f"crops.global.size={size}", f"evaluation.size={size}"]
    config = load_config(["config/demo.yaml", f"model.backbone={backbone}", *sizes])
    config.model = {
        **config.model,
        "options": options,
        "hidden_dim": 16,
        "embedding_dim": 8,
        "prototypes": 12,
        "heads": 1,
    }
    channels = options.get("in_chans", 3)
    config.crops.mean, config.crops.std = [0.25] * channels, [0.125] * channels
    network = SwAV(backbone_of(config.model, own_code=True), 16, 8, 12)
    fill(network)
    state = {
        "step": 7,
        "images": 68,
        "loader": {"epoch": 3, "samples": 0},
        "config": OmegaConf.to_container(config),
    }
    save_network(directory / "checkpoints", state, network)
    (directory / "summary.json").write_text(json.dumps({"steps": 7, "knn": KNN}))
    return directory, network.eval()


@torch.no_grad()
def difference(ours, theirs, *shapes):
    """Largest difference of features, relative to the largest feature."""
    differences = []
    for shape in shapes:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        expected, features = ours(images), theirs(images)
        assert features.shape == expected.shape
        differences.append(float((features - expected).abs().max() / expected.abs().max()))
    return max(differences)


def built_by(code, folder):
    """Run the code that an export prints, in the folder of the file; the network that it builds."""
    names = {}
    with contextlib.chdir(folder):
        exec("\n".join(code), names)
    assert not names["network"].training
    return names["network"]


def refused(capsys, *arguments):
    """The one line that the command prints before it ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert ended.value.code == 2 and not output.out
    assert output.err.startswith("swave: ") and output.err.count("\n") == 1, output.err
    return output.err
