"""model.backbone=transformers:NAME or a folder: Hugging Face's own classes from a configuration, without a download."""

import importlib.util
import json

import pytest
import torch

from model.backbone import build_backbone, checkpoint_activations

needed = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")

_VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TINY = {  # name, options, length of the features, features out of the output of AutoModel
    "vit": (_VIT | {"intermediate_size": 48}, 24, lambda output: output.last_hidden_state[:, 0]),
    "dinov2": (_VIT, 24, lambda output: output.pooler_output),
    "convnext": ({"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}, 32, lambda output: output.pooler_output),
    "resnet": (
        {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8},
        16,
        lambda output: output.pooler_output.flatten(1),
    ),
    "pvt_v2": (
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]},
        32,
        lambda output: output.last_hidden_state.mean((2, 3)),
    ),
    "hgnet_v2": (
        {
            "stem_channels": [3, 4, 8],
            "stage_in_channels": [8, 8, 8, 8],
            "stage_mid_channels": [4] * 4,
            "stage_out_channels": [8, 8, 8, 16],
            "stage_num_blocks": [1] * 4,
            "stage_numb_of_layers": [1] * 4,
            "hidden_sizes": [8, 8, 8, 16],
        },
        16,
        lambda output: output.feature_maps[-1].mean((2, 3)),
    ),
}


def tiny(kind):
    torch.manual_seed(2)
    return build_backbone(f"transformers:{kind}", [32, 64], **TINY[kind][0])


@needed
@pytest.mark.parametrize("kind", TINY)
@torch.no_grad()
def test_features_are_those_of_automodel_by_its_names(kind):
    from transformers import AutoConfig, AutoModel

    options, length, features = TINY[kind]
    network = tiny(kind).eval()
    assert network.feature_dim == length
    theirs = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
    missing = theirs.load_state_dict(network.state_dict(), strict=False)
    assert not missing.unexpected_keys and all(key.startswith("pooler.") for key in missing.missing_keys)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), features(theirs(images)), rtol=1e-6, atol=1e-6)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, length)


@needed
@torch.no_grad()
def test_a_folder_a_class_and_a_model_type_mean_the_same(tmp_path):
    from transformers import ViTConfig

    ViTConfig(**TINY["vit"][0]).save_pretrained(tmp_path)
    images, expected = torch.randn(2, 3, 32, 32), tiny("vit").eval()
    for name in (str(tmp_path), "ViTModel", "ViTConfig"):
        options = {} if name == str(tmp_path) else TINY["vit"][0]
        network = build_backbone(f"transformers:{name}", [32], **options).eval()
        network.load_state_dict(expected.state_dict())
        assert torch.equal(network(images), expected(images))
    assert build_backbone(f"transformers:{tmp_path}", [32], hidden_size=16).feature_dim == 16


@needed
def test_code_beside_a_configuration_is_not_run(tmp_path):
    from transformers import ViTConfig

    ViTConfig(**TINY["vit"][0]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "code.Made", "AutoModel": "code.Made"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Made: pass\n")
    assert build_backbone(f"transformers:{tmp_path}", [32]).feature_dim == 24
    assert not (tmp_path / "ran").exists()


@needed
def test_checkpointing_gives_the_same_gradients_at_both_sizes():
    plain, saving = tiny("vit"), tiny("vit")
    saving.load_state_dict(plain.state_dict())
    checkpoint_activations(saving)
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.modules())
    for network in (plain, saving):
        crops = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        (network(crops).sum() + network(crops.repeat(1, 1, 2, 2)).square().sum()).backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"engine\.activation_checkpointing: this backbone does not support it"):
        checkpoint_activations(tiny("resnet"))


@needed
def test_channels_of_the_images_become_its_own_option():
    network = build_backbone("transformers:vit", [32], **TINY["vit"][0], in_chans=5)
    assert network.config.num_channels == 5 and network(torch.randn(1, 5, 32, 32)).shape == (1, 24)


@needed
@torch.no_grad()
def test_a_masked_autoencoder_sees_all_patches():
    network = build_backbone("transformers:vit_mae", [32], **TINY["vit"][0]).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), network(images), rtol=1e-5, atol=1e-5)


@needed
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vitt", {}, "neither a folder nor a model type of transformers; nearest: "),
        ("/no/such", {}, "/no/such/config.json: No such file or directory; give a folder with config.json"),
        ("vit", {"hidden": 4}, r"has no option 'hidden' .* the nearest option is hidden_act"),
        ("vit", {"hidden_size": "x"}, "hidden_size"),
        ("vit", {"attn_implementation": "somebody/kernel"}, "has no option 'attn_implementation'"),
        ("bert", {}, "BertModel takes input_ids, not images"),
        ("timm_wrapper", {}, "timm_wrapper wraps timm; give model.backbone the name of timm's model"),
        ("swin", {}, "does not take crops of 96 pixels"),
    ],
)
def test_a_mistake_ends_in_one_line(name, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^backbone transformers:{name}.*{message}") as caught:
        build_backbone(f"transformers:{name}", [96], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_without_the_package_a_line_says_what_to_install():
    with pytest.raises(
        ValueError, match=r"^backbone transformers:vit needs transformers: .* pip install 'transformers"
    ):
        build_backbone("transformers:vit", [32])
