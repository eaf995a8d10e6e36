"""Register tokens, drop path, LayerScale and fused attention of timm's ViTs, through runs of swave."""

import math
from unittest import mock

import pytest
import torch
from torch.nn import functional

from model.backbone import build_backbone, checkpoint_activations
from model.swav import SwAV
from support.tiny_runs import losses, make_workplace, train
from training.compiled import compile_network
from training.trained_network import read_trained

NAME = "vit_tiny_patch16_224"
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
MODERN = {"reg_tokens": 4, "init_values": 1e-2, "drop_path_rate": 0.2}


def vit(**more):
    torch.manual_seed(3)
    return build_backbone(NAME, [16, 8], **SIZES, **more)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("vits"))


@pytest.mark.slow(seconds=15)
def test_a_run_with_all_of_them_learns_and_checkpointing_changes_nothing(workplace):
    settings = (
        *(f"model.backbone={NAME}", f"model.options={SIZES | MODERN}", "run.epochs=2", "evaluation.every=0"),
        *("optimizer.name=adamw", "optimizer.base_lr=0.003", "pipeline.backend=torchvision"),
    )
    train(workplace, "plain", *settings)
    train(workplace, "saving", *settings, "engine.activation_checkpointing=true")
    assert all(math.isfinite(loss) for loss in losses(workplace, "plain").values())
    assert losses(workplace, "saving") == pytest.approx(losses(workplace, "plain"), rel=1e-4)
    trained = read_trained(workplace / "plain").network.backbone
    start = vit(**MODERN)
    for key in ("reg_token", "blocks.0.ls1.gamma", "blocks.1.ls2.gamma"):
        assert not torch.equal(trained.get_parameter(key), start.get_parameter(key)), key


@torch.no_grad()
def test_registers_are_no_patches_and_take_part_at_both_sizes():
    network = vit(reg_tokens=4).eval()
    for size in (16, 8):
        images = torch.randn(2, 3, size, size)
        tokens = network.forward_features(images)
        assert tokens.shape == (2, 1 + 4 + (size // 4) ** 2, 16)
        before = network(images)
        network.reg_token.add_(torch.randn_like(network.reg_token))  # by way of attention alone
        assert not torch.equal(network(images), before)


def test_drop_path_drops_in_training_and_not_in_evaluation():
    network, images = vit(drop_path_rate=0.5), torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        assert not torch.equal(network(images), network(images))
        network.eval()
        assert torch.equal(network(images), network(images))


def test_layer_scale_starts_near_the_identity():
    with torch.no_grad():
        network = vit(init_values=1e-6).eval()
        images = torch.randn(2, 3, 16, 16)
        tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
        torch.testing.assert_close(network.blocks(tokens), tokens, rtol=0, atol=1e-4)


def test_attention_is_torchs_fused_one_at_both_sizes_with_the_same_gradients():
    fused, plain = vit(**MODERN | {"drop_path_rate": 0.0}), vit(**MODERN | {"drop_path_rate": 0.0})
    for block in plain.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    checkpoint_activations(fused)
    crops = [torch.randn(2, 3, size, size) for size in (16, 8)]
    calls = []
    real = functional.scaled_dot_product_attention
    with mock.patch.object(
        functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    ):
        for network in (plain, fused):
            sum(network(images).square().sum() for images in crops).backward()
    assert len(calls) == 2 * 2 * 2  # blocks, sizes, and once more in the backward pass
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow(seconds=10)
def test_compiled_they_give_the_same_embeddings():
    crops = [torch.randn(4, 3, size, size) for size in (16, 8)]
    network = SwAV(vit(**MODERN | {"drop_path_rate": 0.0}), 8, 4, 6)
    expected = network(crops, 4)[0]
    compile_network(network, backend="aot_eager")
    torch.testing.assert_close(network(crops, 4)[0], expected, rtol=1e-4, atol=1e-5)
