"""model.backbone=torchvision:NAME: torchvision's own features before the classifier, at every size, or a refusal."""

import pytest
import torch
import torchvision
from torch import nn

from model.backbone import build_backbone
from model.sizes.tables import resample
from support.golden import fill

NAMES = {  # one of each way in which torchvision ends a network
    "alexnet": 4096,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "googlenet": 1024,
    "inception_v3": 2048,
    "mobilenet_v3_small": 1024,
    "regnet_x_400mf": 400,
    "shufflenet_v2_x0_5": 1024,
    "squeezenet1_0": 512,
    "swin_t": 768,
    "vit_b_32": 768,
}


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_each_kind_gives_features_at_both_sizes(name):
    with torch.device("meta"):
        network = build_backbone(f"torchvision:{name}", [224, 96])
        device = next(network.parameters()).device  # RegNet's are not on the meta device
        for size in (224, 96):
            assert network(torch.zeros(2, 3, size, size, device=device)).shape == (2, NAMES[name])
    assert network.feature_dim == NAMES[name]


@torch.no_grad()
def test_features_are_what_torchvision_gives_its_classifier():
    network = build_backbone("torchvision:mobilenet_v3_small").eval()
    fill(network)
    theirs = torchvision.models.mobilenet_v3_small().eval()
    theirs.load_state_dict(network.state_dict(), strict=False)
    seen = []
    theirs.classifier[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 64, 64)
    theirs(images)
    assert torch.equal(network(images), seen[0])
    assert network.state_dict().keys() == theirs.state_dict().keys() - {"classifier.3.weight", "classifier.3.bias"}


def test_dropout_of_the_classifier_is_off_unless_it_is_asked_for():
    def dropouts(**options):
        network = build_backbone("torchvision:mobilenet_v3_small", **options)
        return [module.p for module in network.modules() if isinstance(module, nn.Dropout)]

    assert dropouts() == [0.0] and dropouts(dropout=0.3) == [0.3]


@pytest.mark.slow(seconds=3)
@torch.no_grad()
def test_a_transformer_is_equal_to_torchvisions_own_of_each_size():
    name = "vit_b_32"
    network = build_backbone(f"torchvision:{name}", [224, 96]).eval()
    for size in (224, 96):
        theirs = getattr(torchvision.models, name)(image_size=size).eval()
        theirs.heads = nn.Identity()
        weights, key = network.state_dict(), "encoder.pos_embedding"
        weights[key] = resample(weights[key], theirs.state_dict()[key].shape)
        theirs.load_state_dict(weights)
        images = torch.randn(2, 3, size, size)
        torch.testing.assert_close(network(images), theirs(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt18", {}, "torchvision has no such classifier; nearest: resnet18"),
        ("resnet18", {"zero_init": True}, "has no option 'zero_init' .* the nearest option is zero_init_residual"),
        ("resnet18", {"weights": "DEFAULT"}, "has no option 'weights'"),
        ("resnet18", {"num_classes": 10}, "has no option 'num_classes'"),
        ("resnet18", {"replace_stride_with_dilation": [True]}, "replace_stride_with_dilation should be None or a 3-el"),
        ("resnet18", {"in_chans": 4}, "takes RGB images only; take a model of timm"),
    ],
)
def test_a_mistake_is_refused_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=f"^backbone torchvision:{name}.*{message}") as caught:
        build_backbone(f"torchvision:{name}", [32], **options)
    assert "\n" not in str(caught.value)


def test_a_size_that_it_does_not_take_is_refused_before_anything_starts():
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"^backbone torchvision:vit_h_14 does not take crops of 96 .* 84 and 98$"),
    ):
        build_backbone("torchvision:vit_h_14", [224, 96])
