"""Weights in the layouts of other libraries: each tensor reaches its place, whatever stands beside it."""

import json
import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from config.recipe import ROOT
from model.backbone import build_backbone
from model.swav import SwAV
from model.weights import find, load_weights, published_names, read_weights, take_weights

OF_LIBRARIES = json.loads((ROOT / "tests/golden/weight_layouts.json").read_text())
RESNET = {"block": "basic", "layers": (1, 1), "base_width": 8}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def resnet(seed=0):
    torch.manual_seed(seed)
    network = SwAV(build_backbone("resnet", **RESNET), 16, 8, 10)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.normal_()
    return network


def below(start, tensors):
    return {start + key: value for key, value in tensors.items()}


def equal(first, second):
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def projector(tensors, start):
    names = {key: value for key, value in tensors.items() if key.startswith("projection_head.")}
    return {key.replace("projection_head.", start): value for key, value in names.items()}


class Sequential(nn.Sequential):
    """A ResNet as the Sequential of its children."""

    def __init__(self, backbone):
        children = dict(backbone.named_children())
        parts = [children[name] for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")]
        super().__init__(*parts, nn.AdaptiveAvgPool2d(1))


def layouts():
    """Library -> file contents for a network, and whether its heads are in them. The sources of the names: published
    checkpoints and code of each library, where no package of it writes them (see tests/golden/README.md)."""
    network, copy = resnet(), resnet(7)
    own, plain = network.state_dict(), network.backbone.state_dict()
    other, noise = copy.backbone.state_dict(), torch.randn(8, 12)
    linear = {"fc.weight": torch.randn(5, 16), "fc.bias": torch.randn(5)}
    heads = {key: value for key, value in own.items() if not key.startswith("backbone.")}
    prototypes = own["prototypes.weight"]
    vissl = {"trunk": below("_feature_blocks.", plain)}
    vissl_heads = {**projector(own, "0.projection_head."), "0.prototypes0.weight": prototypes}
    student, teacher = below("module.backbone.", other), below("backbone.", plain)
    solo = {**below("backbone.", plain), **projector(own, "projector."), "prototypes.weight_v": prototypes}
    solo |= {"prototypes.weight_g": torch.ones(10, 1), "classifier.weight": noise}
    mm = below("backbone.", plain) | projector(own, "neck.projection_neck.")
    moco = below("module.encoder_q.", plain | linear) | below("module.encoder_k.", other)
    return network, {
        "swave": (own, True),
        "published SwAV": ({"state_dict": below("module.", published_names(own))}, True),
        "torchvision": (plain | linear, False),
        "torch.compile and FSDP": (below("_orig_mod._fsdp_wrapped_module.", plain), False),
        "VISSL": ({"classy_state_dict": {"base_model": {"model": {**vissl, "heads": vissl_heads}}}}, True),
        "solo-learn": ({"state_dict": solo}, True),
        "Lightning": ({"state_dict": below("model.backbone.", plain), "optimizer_states": {"exp_avg": noise}}, False),
        "lightly": ({"state_dict": {**below("backbone.", Sequential(network.backbone).state_dict()), **{
            key.replace("projection_head.", "projection_head.layers."): value for key, value in heads.items()
            if "prototypes" not in key}, "prototypes.heads.0.weight": prototypes,
            "prototypes.heads.0.bias": torch.zeros(10)}}, True),
        "mmselfsup": ({"state_dict": {**mm, "head.loss_module.prototypes.weight": prototypes}}, True),
        "mmpretrain": ({"state_dict": {**mm, "head.prototypes.weight": prototypes}, "meta": {"epoch": 3}}, True),
        "MoCo v1 and v2": ({"state_dict": moco | {"module.queue": noise, "module.queue_ptr": torch.zeros(1)}}, False),
        "MoCo v3": ({"state_dict": {**below("module.base_encoder.", plain | linear),
                                    **below("module.momentum_encoder.", other)}}, False),
        "BYOL": ({**below("online_encoder.net.", plain), **below("target_encoder.net.", other)}, False),
        "Barlow Twins, VICReg": ({"model": below("module.", {
            **below("backbone.", plain), "projector.0.weight": noise, "bn.running_mean": noise})}, False),
        "DINO, iBOT": ({"student": {**student, "module.head.last_layer.weight": noise}, "teacher": teacher}, False),
        "a file of the student alone": ({"student": below("module.backbone.", plain)}, False),
    }  # fmt: skip


NETWORK, LAYOUTS = layouts()


@pytest.mark.parametrize("library", LAYOUTS)
def test_each_tensor_of_a_resnet_reaches_its_place(tmp_path, library):
    content, with_heads = LAYOUTS[library]
    torch.save(content, tmp_path / "weights.pth")
    network, untouched = resnet(3), resnet(3)
    said = load_weights(network, tmp_path / "weights.pth")
    assert equal(network.backbone, NETWORK.backbone)
    for part in ("projection_head", "prototypes"):
        assert equal(network.get_submodule(part), (NETWORK if with_heads else untouched).get_submodule(part))
    assert ("projection head and prototypes taken" if with_heads else "made anew") in said
    assert "\n" not in said and str(tmp_path / "weights.pth") in said
    if "torchvision" in library or "MoCo" in library:
        assert re.search(r"left out: .*fc", said)


def filled(shapes):
    """Tensors of these shapes, each with its own values."""
    generator = torch.Generator().manual_seed(5)
    return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}


@pytest.mark.parametrize("library", OF_LIBRARIES)
def test_files_of_the_libraries_own_classes_fit(tmp_path, library):
    entry = OF_LIBRARIES[library]
    weights, network = filled(entry["tensors"]), entry["network"]
    save_file(weights, tmp_path / "model.safetensors")
    torch.manual_seed(1)
    backbone = build_backbone(network["backbone"], **network["options"])
    sizes = [network.get(key, usual) for key, usual in (("hidden_dim", 16), ("embedding_dim", 4), ("prototypes", 6))]
    swav = SwAV(backbone, *sizes, heads=network.get("heads", 1))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    said = load_weights(swav, tmp_path)  # a folder, as save_pretrained writes it
    after = backbone.state_dict()
    unchanged = [key for key, value in after.items() if torch.equal(value, before[key]) and value.is_floating_point()]
    assert not unchanged, said
    assert ("prototypes taken" in said) == ("prototypes" in network)


def test_an_autoencoder_gives_its_encoder():
    """The names of MAE's own file (models_mae.py of facebookresearch/mae)."""
    torch.manual_seed(0)
    encoder, network = (build_backbone("vit_tiny_patch16_224", **VIT) for _ in range(2))
    decoder = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight")
    decoder += ("decoder_norm.weight", "decoder_pred.bias")
    weights = below("model.", encoder.state_dict() | {key: torch.randn(1, 4) for key in decoder})
    said = take_weights(network, weights)
    assert equal(network, encoder) and re.search(r"left out: .*decoder", said)


def test_query_key_and_value_become_one_tensor_in_this_order():
    entry = OF_LIBRARIES["Hugging Face ViT"]
    weights = filled(entry["tensors"])
    backbone = find(weights, build_backbone("vit_tiny_patch16_224", **VIT).state_dict()).backbone
    layer = "vit.encoder.layer.1.attention.attention"
    parts = [weights[f"{layer}.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(backbone["blocks.1.attn.qkv.weight"], torch.cat(parts))


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3"])
def test_dinov3s_bias_of_keys_is_zero_or_refused(name):
    backbone = build_backbone(name, embed_dim=24, depth=1, num_heads=2)
    own = backbone.state_dict()
    weights = {re.sub(r"gamma_([12])", r"ls\1.gamma", key): value for key, value in own.items() if "_bias" not in key}
    bias = torch.full((72,), 2.0) if "blocks.0.attn.q_bias" in own else torch.zeros(72)
    weights["blocks.0.attn.qkv.bias"] = bias
    bias[24:48] = 3.0
    with pytest.raises(ValueError, match=r"1 unexpected \(blocks\.0\.attn\."):
        take_weights(backbone, weights)
    mask = torch.ones(72)
    mask[24:48] = 0  # as DINOv3's own files have it
    take_weights(backbone, weights | {"blocks.0.attn.qkv.bias_mask": mask})
    assert all((value == 2.0).all() for key, value in backbone.state_dict().items() if key.endswith("_bias"))


def test_positions_and_patches_are_resized_by_timms_rule():
    torch.manual_seed(0)
    small = build_backbone("vit_tiny_patch16_224", **VIT)
    large = build_backbone("vit_tiny_patch16_224", **{**VIT, "img_size": 96, "patch_size": 16})
    said = take_weights(large, small.state_dict())
    assert "positions interpolated from 4 x 4 to 6 x 6" in said and "patches resampled from 8 to 16 pixels" in said
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    assert torch.equal(large.pos_embed, resample_abs_pos_embed(small.pos_embed.detach(), [6, 6], [4, 4]))
    assert torch.equal(
        large.patch_embed.proj.weight, resample_patch_embed(small.patch_embed.proj.weight.detach(), [16, 16])
    )
    flat = take_weights(large, large.state_dict() | {"pos_embed": torch.full((1, 17, 24), 2.5)})
    assert "interpolated" in flat
    torch.testing.assert_close(large.pos_embed.detach(), torch.full((1, 37, 24), 2.5))


def test_weights_in_several_files_with_an_index_are_one(tmp_path):
    tensors = resnet().backbone.state_dict()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file, keys in files.items():
        save_file({key: tensors[key] for key in keys}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for file, keys in files.items() for key in keys}}))
    for path in (index, tmp_path):
        assert read_weights(path).keys() == tensors.keys()
        network = resnet(3)
        load_weights(network, path)
        assert equal(network.backbone, resnet().backbone)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is missing \(1 of 2 files\)"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    with pytest.raises(ValueError, match="must lie beside it"):
        read_weights(index)


class Marker:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("kind", ["torch.save", "TorchScript"])
def test_nothing_is_unpickled_and_the_line_names_the_way_out(tmp_path, capsys, kind):
    if kind == "torch.save":
        torch.save({"state_dict": resnet().state_dict(), "extra": Marker()}, tmp_path / "weights.pth")
    else:
        with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
            archive.writestr("weights/constants.pkl", b"")
            archive.writestr("weights/data.pkl", pickle.dumps(Marker()))
    with pytest.raises(
        ValueError, match=r"Python objects .* not unpickled; .*torch\.save\(model\.state_dict"
    ) as caught:
        load_weights(resnet(), tmp_path / "weights.pth")
    assert len(str(caught.value)) < 300 + len(str(tmp_path)) and capsys.readouterr().out == ""


@pytest.mark.parametrize("key", ["backbone.layer2.0.conv1.weight", "prototypes.weight", "backbone.bn1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_value_that_is_not_finite_is_named_and_nothing_changes(key, value):
    weights = {name: tensor.clone() for name, tensor in resnet().state_dict().items()}
    weights[key].view(-1)[3] = value
    network = resnet(3)
    with pytest.raises(ValueError, match=rf"weights x\.pth: {re.escape(key)} of \d+ tensors hold infinite or NaN"):
        take_weights(network, weights, "weights x.pth")
    assert equal(network, resnet(3))


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floats_are_refused(kind):
    weights = {name: tensor.to(kind) for name, tensor in resnet().state_dict().items()}
    network = resnet(3)
    with pytest.raises(ValueError, match=rf"backbone\.conv1\.weight is of {str(kind)[6:]}, as quantized weights are; "):
        take_weights(network, weights)
    assert equal(network, resnet(3))


@pytest.mark.parametrize("root", ["featurizer.", "moco.model.cnn.", "backbone.module.", "state_dict_ema."])
def test_a_backbone_is_found_below_any_name(root):
    weights = {root + key: value for key, value in resnet().backbone.state_dict().items()}
    network = resnet(3)
    assert f", below {root})" in take_weights(network, weights)
    assert equal(network.backbone, resnet().backbone)
    assert find(weights).root == root


def test_of_two_backbones_the_averaged_one_is_taken_and_others_are_asked_for():
    def both(*roots):
        states = (resnet(seed).backbone.state_dict() for seed in (0, 1))
        return {
            f"{root}.{key}": value for root, state in zip(roots, states, strict=True) for key, value in state.items()
        }

    for first, second in (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema_model")):
        network = resnet(3)
        assert f", below {second}.)" in take_weights(network, both(first, second))
        assert equal(network.backbone, resnet(1).backbone)
    with pytest.raises(ValueError, match=r"weights hold several networks that fit \(rgb\., depth\.\); save one"):
        take_weights(resnet(3), both("rgb", "depth"))


def test_counters_of_batch_norm_may_be_missing():
    weights = {key: value for key, value in resnet().state_dict().items() if "num_batches_tracked" not in key}
    network = resnet(3)
    assert "projection head and prototypes taken" in take_weights(network, weights)
    assert torch.equal(network.backbone.bn1.running_var, resnet().backbone.bn1.running_var)


def test_heads_of_other_sizes_are_made_anew_and_a_head_that_fits_is_taken():
    torch.manual_seed(0)
    other = SwAV(build_backbone("resnet", **RESNET), 16, 8, 30)
    network = resnet(3)
    assert "projection head taken, prototypes made anew" in take_weights(network, other.state_dict())
    assert equal(network.projection_head, other.projection_head)
    assert equal(network.prototypes, resnet(3).prototypes)


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        (("resnet50", {}), ("resnet18", {}), "hold a resnet50, which .*; model.backbone=resnet50 fits"),
        (("resnet18", {}), ("resnet50w2", {}), "hold a resnet18, which .*; model.backbone=resnet18 fits"),
        (("vit_small_patch16_224", {}), ("resnet18", {}), "12 blocks, width 384.*model.backbone=vit_small_patch16_224"),
        (("resnet18", {}), ("vit_tiny_patch16_224", VIT), "hold a resnet18"),
        (("convnext_atto", {}), ("resnet18", {}), "2-2-6-2 blocks, width 40, .*model.backbone=convnext_atto fits"),
        (("mixer_s32_224", {}), ("resnet18", {}), "of no network that is known here"),
        (("vit_tiny_patch16_224", {**VIT, "depth": 3}), ("vit_tiny_patch16_224", VIT), "3 blocks.* unexpected"),
    ],
)
def test_a_wrong_network_is_one_short_line_with_what_fits(given, wanted, message):
    weights = build_backbone(given[0], **given[1]).state_dict()
    with pytest.raises(ValueError, match=message) as caught:
        take_weights(build_backbone(wanted[0], **wanted[1]), weights, "weights x.pth")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
