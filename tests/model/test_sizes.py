"""Networks that timm builds for one image size take others: as if built for these, with resampled tables."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from model.backbone import build_backbone, checkpoint_activations
from model.sizes.network import Sizes, differences
from model.sizes.tables import resample

VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2}
LEVIT = {"embed_dim": (16, 16), "key_dim": 8, "depth": (1, 1), "num_heads": (1, 1)}
STAGES = {"layers": (1, 1), "embed_dims": (16, 16), "num_heads": (2, 2), "downsamples": (True, False)}
FAMILIES = {  # what depends on the size -> class in timm.models, its arguments, its own size, another size
    "table of positions": ("Cait", {"patch_size": 8, **VIT}, 64, 32),
    "map of positions": ("volo.VOLO", {**STAGES, "outlook_attention": (True, False), "stem_hidden_dim": 8}, 64, 32),
    "positions in blocks": (
        "Nest",
        {"embed_dims": (16, 16), "num_levels": 2, "num_heads": (2, 2), "depths": (1, 1), "drop_path_rate": 0},
        64,
        32,
    ),
    "layers over patches": ("MlpMixer", {"patch_size": 8, "num_blocks": 1, "embed_dim": 16}, 64, 32),
    "biases of relative positions": ("VisionTransformerRelPos", {"patch_size": 8, **VIT}, 64, 32),
    "biases that another layer reads": (
        "VisionTransformerRelPos",
        {"patch_size": 8, "rel_pos_type": "bias", **VIT},
        64,
        32,
    ),
    "biases by index, cached in evaluation": ("Levit", LEVIT, 128, 64),
    "positions made in forward": ("convit.ConVit", {"patch_size": 8, "local_up_to_layer": 1, **VIT}, 64, 32),
}


def build(kind, size):
    """timm's network for this size."""
    name, options, _, _ = FAMILIES[kind]
    module, _, name = name.rpartition(".")
    place = getattr(timm.models, module) if module else timm.models
    return getattr(place, name)(**options, img_size=size, num_classes=0)


def both_sizes(kind):
    """The network for its own size, which takes the other too, in evaluation mode."""
    *_, own, other = FAMILIES[kind]
    torch.manual_seed(1)
    network = build(kind, own)
    Sizes(network, partial(build, kind)).prepare(other)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))  # some tables start at zero
    return network.eval()


def plain(kind, size, weights):
    """timm's own network for one size, with these weights, resampled where it has other shapes."""
    network = build(kind, size).eval()
    linear = {key for key, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv1d)}
    with torch.no_grad():
        for key, value in network.named_parameters():
            value.copy_(resample(weights[key], value.shape, key.rpartition(".")[0] in linear))
    return network


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILIES)
def test_features_at_each_size_are_those_of_the_plain_network_of_that_size(kind):
    *_, own, other = FAMILIES[kind]
    network = both_sizes(kind)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for size in (own, other, own, other):
        images = torch.randn(2, 3, size, size)
        expected = plain(kind, size, before)(images)
        assert torch.allclose(network(images), expected, rtol=0, atol=1e-6), size
    assert {key: value.shape for key, value in network.state_dict().items()} == {k: v.shape for k, v in before.items()}


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradients_of_two_sizes_together_are_their_sum_with_and_without_checkpointing(kind):
    *_, own, other = FAMILIES[kind]
    network = both_sizes(kind).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = [torch.randn(2, 3, size, size) for size in (own, other)]

    def gradients(crops):
        network.zero_grad()
        torch.cat([network(part) for part in crops]).square().mean(1).sum().backward()
        return {key: value.grad.clone() for key, value in network.named_parameters() if value.grad is not None}

    one, two, both = gradients(images[:1]), gradients(images[1:]), gradients(images)
    assert both.keys() == one.keys() and any(float(value.abs().max()) > 0 for value in two.values())
    again = both
    if kind == "positions made in forward":
        with pytest.raises(ValueError, match=r"engine.activation_checkpointing: this backbone does not support it"):
            checkpoint_activations(network)
    else:
        checkpoint_activations(network)
        again = gradients(images)
    for found in (both, again):
        for key, value in found.items():
            assert torch.allclose(value, one[key] + two[key], rtol=1e-4, atol=1e-5), key


def test_torch_exports_a_network_with_a_table_of_its_own():
    network = both_sizes("table of positions")
    images = torch.randn(2, 3, 64, 64)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    for batch in (images, torch.randn(3, 3, 64, 64)):
        assert torch.allclose(program(batch), network(batch), atol=1e-6)


def test_a_copy_has_its_own_weights():
    network = both_sizes("table of positions")
    images = torch.randn(2, 3, 32, 32)
    twin = copy.deepcopy(network)
    assert torch.equal(twin(images), network(images))
    with torch.no_grad():
        network.pos_embed.add_(torch.randn_like(network.pos_embed))
    assert not torch.allclose(twin(images), network(images))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table of positions", "biases by index, cached in evaluation"])
def test_compiled_networks_give_the_same(kind):
    *_, own, other = FAMILIES[kind]
    network = both_sizes(kind)
    images = [torch.randn(2, 3, size, size) for size in (own, other)]
    compiled = copy.deepcopy(network)
    expected = [network(part) for part in images]
    compiled.compile(backend="aot_eager", dynamic=False)
    for part, features in zip(images * 2, expected * 2, strict=True):
        assert torch.allclose(compiled(part), features, atol=1e-6)


def test_a_backbone_of_one_size_takes_crops_of_two():
    network = build_backbone("convit_tiny", [64, 32], depth=1, embed_dim=8, num_heads=2)
    assert network.pos_embed.shape == (1, 14 * 14, network.feature_dim)  # as timm builds it
    assert [network(torch.rand(2, 3, size, size)).shape for size in (64, 32, 224)] == [(2, network.feature_dim)] * 3


def test_positions_that_a_forward_pass_computes_are_those_of_its_size():
    options = {"embed_dim": 8, "depth": 1, "num_heads": 2, "local_up_to_layer": 1}
    network = build_backbone("convit_tiny", [64, 224], **options).eval()
    shapes = [buffer.shape for buffer in network.buffers()]
    images = torch.randn(2, 3, 64, 64)
    expected = timm.create_model("convit_tiny", num_classes=0, img_size=64, **options).eval()
    weights = {key: resample(value, expected.state_dict()[key].shape) for key, value in network.state_dict().items()}
    expected.load_state_dict(weights)
    for _ in range(2):
        assert torch.allclose(network(images), expected(images), rtol=0, atol=1e-6)
        assert [buffer.shape for buffer in network.buffers()] == shapes
        network(torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "efficientformer_l1",
            r"its builder makes the same network for every size: stages.3.blocks.4.token_mixer \(Attention\): .*; "
            "as built it takes 224 pixels$",
        ),
        ("nest_tiny_jx", "First level blocks .*; near it, it takes 32 and 48"),
    ],
)
def test_a_size_for_which_timm_does_not_build_a_network_is_one_line_with_the_reason(name, reason):
    words = f"{name} does not take crops of 36 pixels: {reason}"
    with pytest.raises(ValueError, match=words) as caught:
        build_backbone(name, [36])
    assert "\n" not in str(caught.value)


def test_networks_of_other_layers_are_not_taken_for_one_another():
    one, two = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ValueError, match="it has other layers"):
        differences(one, two)


# ---------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize(("prefix", "old", "new"), [(0, 14, 6), (1, 14, 6), (2, 4, 7)])
def test_positions_are_resampled_as_timm_does(prefix, old, new):
    from timm.layers import resample_abs_pos_embed

    table = torch.randn(1, prefix + old * old, 5)
    expected = resample_abs_pos_embed(table, [new, new], [old, old], num_prefix_tokens=prefix)
    assert torch.allclose(resample(table, (1, prefix + new * new, 5)), expected, atol=1e-5)


def test_maps_are_resampled_as_images():
    table = torch.randn(3, 13, 13)
    expected = functional.interpolate(table[None], (5, 5), mode="bicubic", antialias=True)[0]
    assert torch.allclose(resample(table, (3, 5, 5)), expected, atol=1e-5)


def test_a_sum_over_the_patches_of_an_even_image_stays():
    layer = nn.Linear(64, 10)
    weights = resample(layer.weight, (10, 16), over_patches=True)
    assert torch.allclose(weights.sum(1), layer.weight.sum(1), atol=1e-5)


def test_constant_tables_stay_constant_and_equal_shapes_stay_equal():
    assert torch.allclose(resample(torch.ones(4, 49), (4, 9)), torch.ones(4, 9), atol=1e-6)
    table = torch.randn(2, 7)
    assert torch.equal(resample(table, (2, 7)), table)
    with pytest.raises(ValueError, match=r"\[2, 7\] cannot become \[7\]"):
        resample(table, (7,))
