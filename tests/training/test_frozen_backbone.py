"""A backbone that is frozen at first, with every other way to train on two ranks: nothing of it moves, then it does."""

import copy
import math

import pytest
import torch

from model.backbone import build_backbone
from model.swav import SwAV
from support.tiny_runs import losses, make_workplace, train
from training.compiled import compile_network
from training.trained_network import full_weights

SETTINGS = (
    *("run.epochs=2", "model.freeze_backbone_epochs=1", "run.batch_size=16", "checkpoint={every: 2 steps, keep: 9}"),
    *("pipeline.backend=torchvision", "engine.sync_batch_norm=0", "optimizer.name=adamw", "optimizer.base_lr=0.01"),
    *("model.backbone=vit_tiny_patch16_224", "evaluation.every=0"),
    "model.options={img_size: 16, patch_size: 4, embed_dim: 8, depth: 1, num_heads: 2}",
)
WAYS = {
    "activation checkpointing": ("engine.stage=3", "engine.activation_checkpointing=true"),
    "offload": ("engine.stage=2", "engine.offload=true"),
    "accumulation": ("engine.stage=1", "engine.accumulation=2"),
    "all": ("engine.stage=3", "engine.offload=true", "engine.accumulation=2", "engine.activation_checkpointing=true"),
}
SAME = ("activation checkpointing", "offload")  # accumulation has other batches for the codes


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = make_workplace(tmp_path_factory.mktemp("frozen"))
    train(root, "plain", *SETTINGS, "engine.stage=0", ranks=2)
    return root


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("way", WAYS)
def test_a_backbone_is_frozen_for_its_epoch_on_two_ranks(workplace, way):
    train(workplace, way, *SETTINGS, *WAYS[way], ranks=2)
    found = losses(workplace, way)
    assert len(found) == 8 and all(math.isfinite(loss) for loss in found.values())
    if way in SAME:
        assert found == pytest.approx(losses(workplace, "plain"), rel=1e-3)
    at = {step: full_weights(workplace / way / "checkpoints" / f"step-{step:09d}") for step in (2, 4, 8)}
    backbone = [name for name in at[2] if name.startswith("backbone.")]
    assert all(torch.equal(at[2][name], at[4][name]) for name in backbone)
    assert not any(torch.equal(at[4][name], at[8][name]) for name in backbone)
    assert not torch.equal(at[2]["projection_head.0.weight"], at[4]["projection_head.0.weight"])


@pytest.mark.slow(seconds=10)
def test_a_compiled_backbone_is_frozen_and_released_as_without_compilation():
    """Without inductor, whose C++ takes minutes for the graphs of both states and two sizes."""
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    network = SwAV(build_backbone("vit_tiny_patch16_224", [16, 8], **options), 8, 4, 5)
    compiled = copy.deepcopy(network)
    compile_network(compiled, backend="aot_eager")
    crops = [torch.randn(4 * 2, 3, size, size) for size in (16, 8)]
    for frozen in (True, False, True):
        for each in (network, compiled):
            each.backbone_frozen = frozen
            each.zero_grad()
            each(crops, 4)[1].square().mean().backward()
        for (name, one), other in zip(network.named_parameters(), compiled.parameters(), strict=True):
            assert (one.grad is None) == (frozen and name.startswith("backbone.")) == (other.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)
