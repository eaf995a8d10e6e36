"""LoRA: adapters of peft in a vision transformer learn, and are merged wherever the trained network is read."""

import copy
import importlib.util
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from config.recipe import ConfigError, load_config
from evaluation.backbones import open_backbone
from export.__main__ import export
from model.backbone import build_backbone
from model.lora import DOWN, UP, add_lora, merged
from model.optimizer.build import build_optimizer
from model.swav import SwAV
from support.tiny_runs import interrupted, losses, make_workplace
from support.tiny_runs import train as run_train
from training.checkpoint.save_load import latest_checkpoint
from training.trained_network import read_trained

NAME, OPTIONS = "vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
RANK, ALPHA = 2, 6.0
SETTINGS = (
    *(f"model.backbone={NAME}", f"model.options={OPTIONS}", f"model.lora={{rank: {RANK}, alpha: {ALPHA}}}"),
    *("optimizer.name=adamw", "optimizer.base_lr=0.01", "optimizer.backbone_lr_scale=1", "run.epochs=2"),
    *("checkpoint={every: 3 steps, keep: 9}", "pipeline.backend=torchvision", "model.freeze_backbone_epochs=0"),
    *("model.adapt_steps=0", "model.prototypes_from=weights", "engine.sync_batch_norm=0"),
)
with_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


def vit():
    torch.manual_seed(1)
    return build_backbone(NAME, [16, 8], **OPTIONS)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    workplace = make_workplace(tmp_path_factory.mktemp("run"))
    save_file(vit().state_dict(), workplace / "vit.safetensors")
    return workplace


def train(workplace, name, *settings, ranks=1):
    words = (*SETTINGS, f"model.weights={workplace / 'vit.safetensors'}", *settings)
    return run_train(workplace, name, *words, ranks=ranks)


@with_peft
@torch.no_grad()
def test_adapters_change_nothing_at_first_and_merge_as_peft_merges_them():
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain, adapted, images = vit().eval(), vit().eval(), torch.randn(3, 3, 16, 16)
    add_lora(adapted, RANK, ALPHA, 16)
    torch.testing.assert_close(adapted(images), plain(images))
    for name, parameter in adapted.named_parameters():
        assert "lora_" in name
        parameter.add_(torch.randn_like(parameter) / 9)
    weights = merged(adapted.state_dict(), ALPHA)
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    features = adapted(images)
    torch.testing.assert_close(plain(images), features, rtol=1e-5, atol=1e-5)
    for name, module in adapted.named_modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
            torch.testing.assert_close(module.get_base_layer().weight, weights[f"{name}.weight"], rtol=1e-5, atol=1e-6)


def torchvision_vit():
    network = VisionTransformer(16, 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    network.heads = nn.Identity()
    return network


def torchvision_swin():
    network = SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], stochastic_depth_prob=0.0)
    network.head = nn.Identity()
    return network


def transformers_vit():
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return build_backbone("transformers:vit", [16], patch_size=4, image_size=16, **sizes)


@with_peft
@pytest.mark.parametrize("build", [torchvision_vit, torchvision_swin, transformers_vit])
def test_every_adapter_of_other_libraries_learns_and_is_merged(build):
    """torchvision's attention does not run its linear layers, so these have no adapters."""
    adapted, images = build().eval(), torch.randn(3, 3, 16, 16)
    plain, features = copy.deepcopy(adapted), adapted(images)
    add_lora(adapted, RANK, ALPHA, 16)
    torch.testing.assert_close(adapted(images), features)
    adapted(images).square().sum().backward()
    names = [name for name, _ in adapted.named_parameters()]
    assert sum(name.endswith(UP) for name in names) >= 2
    for name, parameter in adapted.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0 or name.endswith(DOWN), name
        parameter.data.add_(torch.randn_like(parameter) / 9)
    plain.load_state_dict(merged(adapted.state_dict(), ALPHA))
    torch.testing.assert_close(plain(images), adapted(images), rtol=1e-4, atol=1e-4)


@with_peft
def test_only_adapters_heads_and_prototypes_are_in_the_optimizer():
    network = SwAV(vit(), 8, 4, 5)
    add_lora(network.backbone, RANK, ALPHA, 16)
    settings = load_config(["config/demo.yaml", "optimizer.name=adamw", "optimizer.backbone_lr_scale=1"]).optimizer
    settings.base_lr, settings.layer_decay = 0.01, 0.5
    optimizer = build_optimizer(settings, network)
    learning = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    names = [name for name, parameter in network.named_parameters() if parameter in learning]
    assert sum("lora_" in name for name in names) == 2 * 4 * 2  # A and B of 4 layers in 2 blocks
    assert all("lora_" in name for name in names if name.startswith("backbone."))
    scales = {
        name: group["lr_scale"]
        for group in optimizer.param_groups
        for name, p in network.named_parameters()
        if any(p is each for each in group["params"])
    }
    assert (
        scales["backbone.blocks.0.attn.qkv.lora_A.default.weight"]
        < scales["backbone.blocks.1.attn.qkv.lora_A.default.weight"]
    )


@pytest.fixture(scope="module")
def one(workplace):
    train(workplace, "one")
    return losses(workplace, "one")


@with_peft
@pytest.mark.slow(seconds=12)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_has_the_losses_and_weights_of_one_process(workplace, one, stage):
    name = f"stage-{stage}"
    train(workplace, name, f"engine.stage={stage}", ranks=2)
    assert losses(workplace, name) == pytest.approx(one, rel=1e-3)
    base, other = (read_trained(workplace / run).network.state_dict() for run in ("one", name))
    for key, values in base.items():
        if key.startswith("backbone."):
            torch.testing.assert_close(other[key], values, rtol=1e-2, atol=1e-3)


@with_peft
@pytest.mark.slow
def test_a_resumed_run_has_the_same_losses_without_the_file_of_weights(workplace, one):
    interrupted(workplace, "one", "resumed", 6)
    output = train(workplace, "resumed", f"model.weights={workplace / 'gone.safetensors'}", "engine.stage=3")
    assert "resuming from" in output
    assert losses(workplace, "resumed") == pytest.approx(one, rel=1e-5)
    assert all(math.isfinite(loss) for loss in one.values())


@with_peft
@pytest.mark.slow
def test_exports_have_the_merged_weights_and_no_adapters(workplace, one, tmp_path):
    start = load_file(workplace / "vit.safetensors")
    export(workplace / "one", tmp_path / "out.pth", "timm")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert written.keys() == start.keys()
    moved = {key: (written[key] - start[key]).abs().max().item() for key in start}
    assert all(
        distance > 1e-3
        for key, distance in moved.items()
        if key.startswith("blocks") and key.endswith(("qkv.weight", "fc1.weight", "fc2.weight", "proj.weight"))
    )
    assert all(moved[key] == 0 for key in ("pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias"))
    read = open_backbone(str(workplace / "one")).network
    assert all(torch.equal(read.state_dict()[key], value) for key, value in written.items())
    tensors = load_file(latest_checkpoint(workplace / "one" / "checkpoints") / "rank-00000.safetensors")
    assert not any(key.startswith("exp_avg/backbone") and "lora_" not in key for key in tensors)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet18", "this backbone has no linear layers"),
        *([] if importlib.util.find_spec("peft") else [(NAME, "needs peft: ")]),
    ],
)
def test_a_backbone_that_takes_no_adapters_is_refused_in_one_line(backbone, message):
    network = vit() if backbone == NAME else build_backbone(backbone)
    with pytest.raises(ValueError, match=f"^model.lora.rank=2:? {message}"):
        add_lora(network, 2, 4.0, 16)


def test_adapters_without_weights_are_refused(workplace):
    with pytest.raises(ConfigError, match=r"^model\.lora\.rank=2: expected 0 without model\.weights"):
        load_config([str(workplace / "tiny.yaml"), *SETTINGS, f"model.backbone={NAME}"])
