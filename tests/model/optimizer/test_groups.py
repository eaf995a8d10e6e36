"""Learning rates, decay and freezing by group: of the backbone's layers, of heads and prototypes."""

import pytest
import torch
from omegaconf import OmegaConf

from config.recipe import default_config
from model.backbone import build_backbone
from model.optimizer.build import build_optimizer, set_step
from model.optimizer.groups import parameter_groups
from model.swav import SwAV

RESNET = {"block": "basic", "layers": [2, 1], "base_width": 4, "stem": "small"}
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}
LAYERS = {  # the layers behind one, by the start of its parameters' names
    "resnet": {"conv1": 3, "bn1": 3, "layer1.0": 2, "layer1.1": 1, "layer2.0": 0},
    "vit": {"cls_token": 3, "pos_embed": 3, "patch_embed": 3, "blocks.0": 2, "blocks.1": 1, "blocks.2": 0, "norm": 0},
}


def network_of(name):
    backbone = build_backbone("resnet", **RESNET) if name == "resnet" else build_backbone("vit_tiny_patch16_224", **VIT)
    return SwAV(backbone, 8, 4, 6)


def settings_of(**settings):
    optimizer = {"base_lr": 1.0, "backbone_lr_scale": 1.0, **settings}
    return OmegaConf.merge(default_config().optimizer, optimizer)


@pytest.mark.parametrize("backbone", ["resnet", "vit"])
@pytest.mark.parametrize("optimizer", ["lars", "adamw", "muon"])
def test_a_layer_learns_at_the_backbones_rate_times_the_decay_of_the_layers_behind_it(backbone, optimizer):
    network = network_of(backbone)
    built = build_optimizer(settings_of(name=optimizer, layer_decay=0.5, backbone_lr_scale=0.25), network)
    set_step(built, 2.0, frozen_prototypes=False)
    rates = {p: group["lr"] for group in built.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters())) == sum(len(g["params"]) for g in built.param_groups)
    for name, parameter in network.named_parameters():
        part, _, own_name = name.partition(".")
        (behind,) = [n for start, n in LAYERS[backbone].items() if own_name.startswith(start)] or [None]
        expected = 2.0 * 0.25 * 0.5**behind if part == "backbone" else 2.0
        assert rates[parameter] == pytest.approx(expected, rel=1e-12), name
    assert built.param_groups[-1]["params"] == [network.prototypes.weight]


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_the_same_rates_everywhere_need_no_more_groups_than_decay_and_prototypes(optimizer):
    assert len(build_optimizer(settings_of(name=optimizer), network_of("resnet")).param_groups) == (
        2 if optimizer == "lars" else 3
    )


@pytest.mark.parametrize("optimizer", ["lars", "adamw", "muon"])
def test_a_step_moves_a_backbone_only_once_it_is_released(optimizer):
    network = network_of("resnet")
    built = build_optimizer(settings_of(name=optimizer), network, freezes_backbone=True)
    for frozen in (True, False):
        network.backbone_frozen = frozen
        set_step(built, 0.5, frozen_prototypes=False, frozen_backbone=frozen)
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        network([torch.randn(8, 3, 16, 16)], 4)[1].square().mean().backward()
        built.step()
        for name, parameter in network.named_parameters():
            if not name.endswith("0.bias"):  # in front of the head's batch norm: no gradient
                assert torch.equal(parameter, before[name]) == (frozen and name.startswith("backbone.")), name
        assert frozen == (network.backbone.conv1.weight.grad is None)
    assert int(network.backbone.bn1.num_batches_tracked) == 2  # statistics follow the images from the start


def test_layers_of_a_backbone_that_does_not_list_them_are_an_error_of_one_line():
    network = network_of("resnet")
    network.backbone = torch.nn.Flatten()
    with pytest.raises(
        ValueError, match=r"^optimizer\.layer_decay needs a backbone that lists its layers; leave it at"
    ):
        parameter_groups(network, layer_decay=0.5)
