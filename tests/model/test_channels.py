"""Networks of images with any number of channels, and RGB weights in them."""

import pytest
import timm
import torch

from model.backbone import build_backbone
from model.sizes.trial import channels_of
from model.weights import load_weights, take_weights
from model.weights.guess import resnet_options

TINY = {"block": "basic", "layers": [1, 1], "base_width": 8}


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet", TINY), ("resnet", {**TINY, "stem": "small"}), ("vit_tiny_patch16_224", {"depth": 1})],
)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_backbone_takes_the_channels_that_it_is_built_for(name, options, channels):
    backbone = build_backbone(name, [32], in_chans=channels, **options).eval()
    assert channels_of(backbone) == channels
    assert backbone(torch.zeros(2, channels, 32, 32)).shape == (2, backbone.feature_dim)
    assert channels_of(build_backbone(name, [32], **options)) == 3


def test_three_channels_are_the_network_of_before():
    torch.manual_seed(0)
    one = build_backbone("resnet", **TINY)
    torch.manual_seed(0)
    other = build_backbone("resnet", in_chans=3, **TINY)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_wrong_number_is_refused():
    with pytest.raises(ValueError, match=r"resnet in_chans=0: expected an integer from 1 on"):
        build_backbone("resnet", in_chans=0, **TINY)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 7])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_rgb_weights_start_a_network_of_other_channels_by_repetition(tmp_path, channels, stem):
    rgb = build_backbone("resnet", stem=stem, **TINY)
    torch.save(rgb.state_dict(), tmp_path / "rgb.pth")
    other = build_backbone("resnet", stem=stem, in_chans=channels, **TINY)
    line = load_weights(other, tmp_path / "rgb.pth")
    assert "the first layer's colors" in line
    for key, value in other.state_dict().items():
        if key != "conv1.weight":
            torch.testing.assert_close(value, rgb.state_dict()[key])
    given, first = rgb.conv1.weight, other.conv1.weight
    for channel in range(channels if channels > 1 else 0):
        torch.testing.assert_close(first[:, channel], given[:, channel % 3] * (3 / channels))
    if channels == 1 or channels % 3 == 0:  # equal channels give what gray gives in RGB
        gray = torch.rand(2, 1, 32, 32)
        features = other.eval()(gray.expand(-1, channels, -1, -1)), rgb.eval()(gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_rule_is_that_of_timm(channels):
    from timm.models._manipulate import adapt_input_conv

    weight = torch.randn(8, 3, 7, 7)
    network = build_backbone("resnet", in_chans=channels, **TINY)
    take_weights(network, build_backbone("resnet", **TINY).state_dict() | {"conv1.weight": weight})
    torch.testing.assert_close(network.conv1.weight.detach(), adapt_input_conv(channels, weight))


def test_patches_of_rgb_weights_are_repeated_and_resampled():
    rgb = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=32)
    other = build_backbone("vit_tiny_patch16_224", [32], depth=1, img_size=32, patch_size=8, in_chans=4)
    line = take_weights(other, rgb.state_dict())
    assert "colors repeated for 4 channels; patches resampled from 16 to 8 pixels" in line


def test_weights_of_other_channels_than_rgb_are_refused():
    four, two = (build_backbone("resnet", in_chans=channels, **TINY) for channels in (4, 2))
    with pytest.raises(ValueError, match=r"of another shape \(conv1.weight \[8, 4, 7, 7\] for \[8, 2, 7, 7\]\)"):
        take_weights(two, four.state_dict())


def test_the_shapes_of_weights_tell_the_channels():
    assert resnet_options(build_backbone("resnet", in_chans=4, **TINY).state_dict())["in_chans"] == 4
    assert "in_chans" not in resnet_options(build_backbone("resnet", **TINY).state_dict())
