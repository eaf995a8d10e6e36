"""Writes a backbone for Hugging Face transformers: a folder that `AutoModel.from_pretrained` loads.

The names of the tensors are those that `model.weights` reads (`model/weights/layouts.py`), in reverse.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config.groups import sizes_of_crops
from export.counterparts import no_counterpart, with_weights
from export.model_card import model_card
from model.libraries.names import library_of
from model.libraries.options import names_of
from model.libraries.transformers_models import interpolated, way_of
from model.sizes.trial import channels_of
from model.weights import in_layout
from training.trained_network import Trained

NETWORKS = "transformers has ResNets with a 7x7 stem, plain ViT, DINOv2, DINOv3 and ConvNeXt"


def write_transformers(trained: Trained, path: Path) -> list[str]:
    """Write config.json, model.safetensors, preprocessor_config.json and a model card; returns lines that load them.

    Raises ValueError (one line) if transformers is not installed, has no such network, or gives other features.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("format transformers needs transformers: .venv/bin/python -m pip install transformers")
    backbone = trained.network.backbone
    if library_of(trained.backbone_name)[0] == "transformers":
        return _write_own(trained, path)
    config = transformers_config(backbone, sizes_of_crops(trained.config["crops"])[0])
    if config is None:
        raise no_counterpart(trained, "transformers", NETWORKS)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be fetched
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # A ViT's pooler belongs to its classifier, and SwAV trains no classifier.
    options = {"add_pooling_layer": False} if config["model_type"] == "vit" else {}
    network = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config), **options)
    words, features = reading(backbone)
    side = config.get("image_size", 64)
    weights = in_layout(backbone.state_dict(), network.state_dict())
    with_weights(trained, network, weights, [], side, "transformers", features)
    return _write_folder(trained, network, path, options, words)


def _write_own(trained: Trained, path: Path) -> list[str]:
    """The same for a backbone that is a network of transformers."""
    backbone: Any = trained.network.backbone
    kind = type(backbone).__mro__[1]  # above it stands the class that gives features
    options = {"add_pooling_layer": False} if "add_pooling_layer" in names_of(kind) else {}
    network = kind(backbone.config, **options).eval()
    network.load_state_dict(backbone.state_dict())
    side = sizes_of_crops(trained.config["crops"])[0]
    output = network(torch.zeros(1, channels_of(backbone), side, side), **interpolated(kind))
    return _write_folder(trained, network, path, options, way_of(network, output))


def _write_folder(trained: Trained, network: Any, path: Path, options: dict[str, bool], words: str) -> list[str]:
    """Write a network of transformers, its preprocessing and its README. words: where its output has the features.
    Returns the lines of Python that load it."""
    network.save_pretrained(path, max_shard_size="1TB")
    _check_file(network, path, options)
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor(trained), indent=2) + "\n")
    arguments = ", ".join([repr(path.name), *(f"{key}={value}" for key, value in options.items())])
    code = [
        "import transformers",
        f"network = transformers.AutoModel.from_pretrained({arguments}).eval()",
        f"features = network(images).{words}",
    ]
    (path / "README.md").write_text(model_card(trained, code))
    return code


def transformers_config(backbone: nn.Module, side: int) -> dict[str, Any] | None:
    """The configuration with which transformers builds this backbone, by the names of its Config classes, and their
    `model_type`; None for a network that it does not have. side: of the images, where no positions fix it.

    It says what names and shapes of the tensors tell; another activation, for example, shows in the features.
    """
    weights = backbone.state_dict()
    if "layer1.0.conv1.weight" in weights and weights.get("conv1.weight", torch.empty(0)).shape[2:] == (7, 7):
        return _resnet(weights)
    if "blocks.0.attn.qkv.weight" in weights and "cls_token" in weights:
        return _vision_transformer(backbone, weights, side)
    if "stages.0.blocks.0.conv_dw.weight" in weights and "stem.0.weight" in weights:
        return _convnext(backbone, weights)
    return None


def reading(backbone: nn.Module) -> tuple[str, Callable[[nn.Module, Tensor], Tensor]]:
    """How to get the features from the output of transformers' network: as Python after a dot, and as a function."""
    if not hasattr(backbone, "blocks"):
        return "pooler_output.flatten(1)", lambda network, images: network(images).pooler_output.flatten(1)
    if getattr(backbone, "global_pool", "token") == "token":
        return "last_hidden_state[:, 0]", lambda network, images: network(images).last_hidden_state[:, 0]
    tokens = int(getattr(backbone, "num_prefix_tokens", 1))
    return (
        f"last_hidden_state[:, {tokens}:].mean(1)",
        lambda network, images: network(images).last_hidden_state[:, tokens:].mean(1),
    )


def preprocessor(trained: Trained) -> dict[str, Any]:
    """The recipe's central crop as a configuration for transformers' AutoImageProcessor."""
    crops, evaluation = trained.config["crops"], trained.config["evaluation"]
    size = int(sizes_of_crops(crops)[0] if evaluation["size"] == "auto" else evaluation["size"])
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(size / float(evaluation["share"]))},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [float(value) for value in crops["mean"]],
        "image_std": [float(value) for value in crops["std"]],
        "do_convert_rgb": True,
    }


def _resnet(weights: dict[str, Tensor]) -> dict[str, Any]:
    stages = _numbers(weights, "layer")
    blocks = [_numbers(weights, f"layer{stage}.") for stage in range(1, 1 + len(stages))]
    last = "conv3" if "layer1.0.conv3.weight" in weights else "conv2"
    return {
        "model_type": "resnet",
        "embedding_size": weights["conv1.weight"].shape[0],
        "hidden_sizes": [weights[f"layer{stage}.0.{last}.weight"].shape[0] for stage in range(1, 1 + len(stages))],
        "depths": [len(stage) for stage in blocks],
        "layer_type": "bottleneck" if last == "conv3" else "basic",
    }


def _vision_transformer(backbone: nn.Module, weights: dict[str, Tensor], side: int) -> dict[str, Any] | None:
    patch, width = weights["patch_embed.proj.weight"].shape[-1], weights["patch_embed.proj.weight"].shape[0]
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in weights else 0
    first = backbone.get_submodule("blocks.0")
    config: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": len(_numbers(weights, "blocks.")),
        "num_attention_heads": int(first.get_submodule("attn").num_heads),  # type: ignore[arg-type]
        "layer_norm_eps": float(first.get_submodule("norm1").eps),  # type: ignore[arg-type]
        "patch_size": patch,
    }
    if "blocks.0.gamma_1" in weights and "pos_embed" not in weights:  # timm's Eva with rotary positions
        bias = "blocks.0.attn.q_bias" in weights
        biases = {"query_bias": bias, "key_bias": False, "value_bias": bias}
        config |= {"intermediate_size": hidden, "num_register_tokens": registers, **biases}
        return {"model_type": "dinov3_vit", "image_size": side, **config}
    if "pos_embed" not in weights:
        return None
    class_positions = 0 if getattr(backbone, "no_embed_class", False) else 1
    config["image_size"] = math.isqrt(weights["pos_embed"].shape[1] - class_positions) * patch
    config["qkv_bias"] = "blocks.0.attn.qkv.bias" in weights
    if "blocks.0.ls1.gamma" not in weights:
        return {"model_type": "vit", "intermediate_size": hidden, **config}
    if hidden % width:
        return None
    config["mlp_ratio"] = hidden // width
    if registers:
        return {"model_type": "dinov2_with_registers", "num_register_tokens": registers, **config}
    return {"model_type": "dinov2", **config}


def _convnext(backbone: nn.Module, weights: dict[str, Tensor]) -> dict[str, Any]:
    stages = range(len(_numbers(weights, "stages.")))
    return {
        "model_type": "convnext",
        "patch_size": weights["stem.0.weight"].shape[-1],
        "num_stages": len(stages),
        "hidden_sizes": [weights[f"stages.{stage}.blocks.0.conv_dw.weight"].shape[0] for stage in stages],
        "depths": [len(_numbers(weights, f"stages.{stage}.blocks.")) for stage in stages],
        "layer_norm_eps": float(backbone.get_submodule("head.norm").eps),  # type: ignore[arg-type]
    }


def _numbers(weights: dict[str, Tensor], start: str) -> set[str]:
    """The numbers that stand between `start` and a dot in the names."""
    return {key.removeprefix(start).split(".")[0] for key in weights if key.startswith(start)}


def _check_file(network: nn.Module, path: Path, options: dict[str, Any]) -> None:
    """Raise ValueError unless the folder holds the network's tensors, bit by bit."""
    import transformers

    loaded, report = transformers.AutoModel.from_pretrained(path, output_loading_info=True, **options)
    own, read = network.state_dict(), loaded.state_dict()
    wrong = [*report["missing_keys"], *report["unexpected_keys"]]
    wrong += [key for key, value in own.items() if key not in read or not torch.equal(read[key], value)]
    if wrong:
        raise ValueError(f"transformers {transformers.__version__} reads {wrong[0]} otherwise than it wrote it")
