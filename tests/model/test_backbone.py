"""Backbones by name: our ResNets and timm's models, their sizes and their errors."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from config.backbones import OWN, registered, unknown_backbone
from model.backbone import backbone_of, build_backbone, stride_outside
from model.resnet import RESNETS
from model.swav import SwAV
from model.trial import check_features

SMALL = {"block": "basic", "layers": (1, 1), "base_width": 8, "stem": "small"}


@pytest.mark.parametrize(("stride", "stages", "side"), [(1, 1, 28), (2, 1, 14), (1, 3, 7), (2, 3, 4)])
def test_small_stem_keeps_the_resolution_of_small_images(stride: int, stages: int, side: int) -> None:
    options = {**SMALL, "layers": (1,) * stages, "stem_stride": stride}
    backbone = build_backbone("resnet", **options)
    maps = []
    backbone.get_submodule(f"layer{stages}").register_forward_hook(lambda *call: maps.append(call[-1].shape))
    features = backbone(torch.rand(2, 3, 28, 28))
    assert maps[0][2:] == (side, side)
    assert features.shape == (2, backbone.feature_dim) == (2, 8 * 2 ** (stages - 1))


@pytest.mark.parametrize(
    ("name", "features"),
    [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048), ("resnet50w4", 8192), ("resnet50w5", 10240)],
)
def test_family_has_the_feature_sizes_of_the_paper(name: str, features: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert backbone.feature_dim == features
    assert backbone.conv1.out_channels == 64 * RESNETS[name].get("width_multiplier", 1)


def test_last_norm_of_a_block_starts_at_one() -> None:
    backbone = build_backbone("resnet", layers=(1,), base_width=8)
    assert torch.equal(backbone.layer1[0].bn3.weight, torch.ones(32))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_timm_backbones_take_two_resolutions(name: str) -> None:
    network = SwAV(build_backbone(name), hidden_dim=16, embedding_dim=8, num_prototypes=5)
    embeddings, scores, _, _ = network([torch.rand(4, 3, 64, 64), torch.rand(4, 3, 32, 32)], 2)
    assert embeddings.shape == (4, 2, 8) and scores.shape == (4, 2, 5)


def test_unknown_backbone_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"backbone 'resnet50w3' .* nearest: .*resnet50w") as error:
        build_backbone("resnet50w3")
    assert "\n" not in str(error.value)


def test_names_are_known_without_importing_the_libraries() -> None:
    import timm
    import torchvision

    current, old = registered("timm")
    assert current == set(timm.list_models()) and all(map(timm.is_model, old)) and "tv_resnext50_32x4d" in old
    assert registered("torchvision")[0] == set(torchvision.models.list_models(module=torchvision.models))
    assert set(OWN) == {"resnet", *RESNETS}
    names = (*OWN, "resnet50.a1_in1k", "tv_resnext50_32x4d", "torchvision:resnet18", "transformers:vit", "mine:network")
    assert not any(map(unknown_backbone, names))


@pytest.mark.parametrize(
    "options", [{"width": 2}, {"block": "wide"}, {"stem": "cifar"}, {"layers": ()}, {"layers": (1,) * 5}]
)
def test_unknown_resnet_option_is_an_error(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="resnet"):
        build_backbone("resnet", **options)


def test_a_crop_size_that_a_backbone_does_not_take_is_one_line():
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 does not take crops of 90 pixels: .*patch size"):
        build_backbone("vit_tiny_patch16_224", sizes=[96, 90])
    with pytest.raises(ValueError, match=r"convnext_atto with model.options=.*nonsense"):
        build_backbone("convnext_atto", nonsense=1)


def test_lists_and_mappings_of_a_recipe_reach_timm_as_python_values():
    options = OmegaConf.create({"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]})
    network = backbone_of({"backbone": "convnext_atto", "options": options}, sizes=[32])
    assert network.feature_dim == 32
    swin = {"depths": [1, 1], "embed_dim": 24, "num_heads": [2, 2]}
    name = "swin_tiny_patch4_window7_224"
    assert backbone_of({"backbone": name, "options": OmegaConf.create(swin)}).feature_dim == 48


SMALL_VIT = {"depth": 1, "embed_dim": 24, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet10t", {"num_classes": 7}, "no classifier; leave out num_classes"),
        ("resnet10t", {"features_only": True}, "maps of all stages .*; leave out features_only"),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "global_pool": ""}, r"gives \[2, 5, 24\] .*; leave out global_pool"),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "depths": 2}, "argument 'depths'; the nearest option is depth"),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "num_heads": 5}, "model.options="),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "init_values": float("nan")}, "infinite or NaN features"),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "act_layer": "rleu"}, "no such name: 'rleu'"),
        ("resnet10t", {"output_stride": 3}, r"AssertionError at `assert output_stride in \(8, 16, 32\)`"),
        ("resnet10t", {"layers": [1, 1]}, "crops of 32 pixels: 'ResNet' object has no attribute 'layer3'"),
        ("resnet18", {1: 2}, "resnet18 has no option 1"),
        ("resnet18", {"sizes": 2}, "resnet18 has no option 'sizes'"),
        ("resnet10t", {"name": "x"}, "resnet10t has no option 'name'"),
    ],
)
def test_options_that_change_what_comes_out_are_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        backbone_of({"backbone": name, "options": options}, sizes=[32])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_refused_size_comes_with_sizes_near_it_that_are_taken():
    with pytest.raises(ValueError, match=r"crops of 90 pixels: .*; near it, it takes 80 and 96"):
        build_backbone("vit_tiny_patch16_224", sizes=[90], **SMALL_VIT)
    with pytest.raises(ValueError, match=r"crops of 64 pixels: .*; as built it takes 224 pixels$"):
        build_backbone("efficientformer_l1", sizes=[64])


def test_the_trial_changes_neither_the_network_nor_random_numbers():
    torch.manual_seed(3)
    plain = build_backbone("resnet10t", drop_path_rate=0.5)
    following = torch.rand(3)
    torch.manual_seed(3)
    tried = build_backbone("resnet10t", sizes=[32, 64], drop_path_rate=0.5)
    assert torch.equal(torch.rand(3), following) and tried.training
    for key, value in plain.state_dict().items():
        assert torch.equal(tried.state_dict()[key], value), key


class Forgetful(nn.Module):
    """Right in evaluation; in training its features are not finite."""

    feature_dim = 3

    def forward(self, images):
        return images.mean((2, 3)) * (float("inf") if self.training else 1)


def test_training_mode_is_tried_too():
    with pytest.raises(ValueError, match="infinite or NaN features for crops of 8 pixels"):
        check_features(Forgetful(), "forgetful", {}, [8])


def test_strided_convolutions_of_few_channels_get_every_other_pixel_and_give_the_same():
    plain = build_backbone("resnet", **{**SMALL, "layers": (1, 1, 1)})
    changed = copy.deepcopy(plain)
    stride_outside(changed)
    shortcuts = [own for own in changed.modules() if isinstance(own, nn.Conv2d) and own.kernel_size == (1, 1)]
    assert [(own.in_channels, own.stride) for own in shortcuts] == [(8, (1, 1)), (16, (2, 2))]
    images = torch.randn(2, 3, 16, 16)
    changed(images).square().sum().backward()
    with torch.backends.mkldnn.flags(enabled=False):
        plain(images).square().sum().backward()
    for name, own in plain.named_parameters():
        torch.testing.assert_close(changed.get_parameter(name).grad, own.grad, rtol=1e-3, atol=1e-4)
