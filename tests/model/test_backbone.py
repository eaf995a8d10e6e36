"""Backbones by name: our ResNets and timm's models, their sizes and their errors."""

import pytest
import torch

from model.backbone import build_backbone
from model.resnet import RESNETS
from model.swav import SwAV

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
