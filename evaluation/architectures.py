"""Builds networks by name, and infers the network that a file of weights belongs to."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from config.groups import sizes_of_crops
from config.recipe import load_config
from model.backbone import backbone_of, build_backbone
from model.libraries.names import UnknownBackbone, is_own_code
from model.libraries.torchvision_models import torchvision_network
from model.resnet import RESNETS
from model.weights.guess import guess, resnet_name, resnet_options
from pipeline.crops import chosen

ANTIALIASED = re.compile(r"resnet\w*?(?:blur|aa)\d+|antialias\w*|lpf\d")  # names of ResNets with other pooling
IMAGENET_STD = (0.229, 0.224, 0.225)
PUBLISHED_STD = (0.228, 0.224, 0.225)
MEAN = (0.485, 0.456, 0.406)


@dataclass(frozen=True)
class Inputs:
    """Input of a backbone. mean, std: per channel, where 1 is the largest uint8 or uint16. size: pixels of the central
    crop. share: its part of the shorter side."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = PUBLISHED_STD
    size: int = 224
    share: float = 0.875


@dataclass(frozen=True)
class NamedNetwork:
    """A network without classifier, with the attribute `feature_dim`; its name; its inputs."""

    network: nn.Module
    name: str
    inputs: Inputs


def build(word: str, pretrained: bool = False) -> NamedNetwork:
    """The network that the user's `word` names: timm:NAME, torchvision:NAME, transformers:NAME, module:function, one of
    our ResNets, or a recipe's (*.yaml).

    pretrained: with the weights that timm or torchvision provide, from their caches or the network. Raises ValueError
    (one line).
    """
    library, _, name = word.partition(":")
    if library == "torchvision" and name:
        return _from_torchvision(name, pretrained)
    if library == "timm" and name:
        return _from_timm(name, pretrained)
    if word.endswith((".yaml", ".yml")):
        config = load_config([word, "data.path=."])
        size = config.evaluation.size if config.evaluation.size != "auto" else sizes_of_crops(config.crops)[0]
        network = backbone_of(config.model, sizes=[size], own_code=True)
        mean, std = (tuple(chosen(config.crops, key)) for key in ("mean", "std"))
        inputs = Inputs(mean, std, size, config.evaluation.share)
        return NamedNetwork(network, f"{config.model.backbone} of {word}", inputs)
    if word in RESNETS or library == "transformers" or is_own_code(word):
        inputs = Inputs() if word in RESNETS else Inputs(std=IMAGENET_STD)
        return NamedNetwork(backbone_of({"backbone": word, "options": {}}, own_code=True), word, inputs)
    near = difflib.get_close_matches(word, RESNETS, n=1)
    raise ValueError(
        f"network {word!r} is unknown{f', perhaps {near[0]}' if near else ''}; "
        f"give timm:NAME, torchvision:NAME, transformers:NAME, {', '.join(RESNETS)}, or a recipe (*.yaml)"
    )


def from_config(config: Mapping[str, Any]) -> Inputs:
    """The inputs that a run's recipe sets for evaluation. config: a checkpoint's."""
    crops, evaluation = config["crops"], config["evaluation"]
    size = evaluation["size"] if evaluation["size"] != "auto" else sizes_of_crops(crops)[0]
    mean, std = (tuple(chosen(crops, key)) for key in ("mean", "std"))
    return Inputs(mean, std, int(size), float(evaluation["share"]))


def of_weights(backbone: Mapping[str, Tensor], source: Path) -> NamedNetwork:
    """Our ResNet for weights without a name, inferred from their shapes. Raises ValueError (one line) if the shapes do
    not determine it.

    backbone: by swave's names. source: their file; its name may say that its ResNet pools with antialiasing, which
    changes no tensor.
    """
    remedy = f"name the network: {source}@timm:NAME, {source}@torchvision:NAME, or {source}@RECIPE.yaml"
    options = resnet_options(backbone)
    if options is None or any(key.endswith(".filt") for key in backbone):
        stem = backbone.get("conv1.weight")
        if stem is not None and stem.shape[-1] != 7 and "layer1.0.conv1.weight" in backbone:
            stem_words = f"a stem of {stem.shape[-1]} pixels, whose stride is unknown"
            raise ValueError(f"weights {source} have {stem_words}; {remedy}")
        described, name = guess(backbone)
        remedy = remedy.replace("NAME", name, 1) if name else remedy
        raise ValueError(
            f"weights {source} hold {described}: not those of a ResNet that is known by its shapes; {remedy}"
        )
    name = resnet_name(options)
    if antialiased := ANTIALIASED.search(source.name.lower()):
        raise ValueError(
            f"weights {source} are called {antialiased[0]}, which pools otherwise than {name} with the same tensors; "
            f"name the network: {source}@timm:NAME, or {source}@{name} for the plain one"
        )
    return NamedNetwork(build_backbone("resnet", **options), name, Inputs())


# ---------------------------------------------------------------------------------------------- libraries
def _from_torchvision(name: str, pretrained: bool) -> NamedNetwork:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        torchvision_network(name, {})  # raises the error with the nearest names
    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    inputs = Inputs(std=IMAGENET_STD)
    if weights is not None:
        preset = weights.transforms()
        size = int(preset.crop_size[0])
        share = min(1.0, size / preset.resize_size[0])
        inputs = Inputs(tuple(preset.mean), tuple(preset.std), size, share)
    network = _fetched(f"torchvision:{name}", partial(torchvision_network, name, {}, weights, auxiliary=True))
    return NamedNetwork(network, f"torchvision:{name}", inputs)


def _from_timm(name: str, pretrained: bool) -> NamedNetwork:
    inputs = Inputs(std=IMAGENET_STD)
    network = _fetched(f"timm:{name}", lambda: build_backbone(name, pretrained=True)) if pretrained else None
    network = network or build_backbone(name)
    settings = getattr(network, "pretrained_cfg", None) or {}
    if settings.get("mean"):
        size = int(settings.get("input_size", (3, 224, 224))[-1])
        inputs = Inputs(
            tuple(settings["mean"]), tuple(settings["std"]), size, float(settings.get("crop_pct") or inputs.share)
        )
    return NamedNetwork(network, f"timm:{name}", inputs)


def _fetched(word: str, make: Any) -> nn.Module:
    """The network that `make` returns. Raises ValueError (one line) if its weights cannot be fetched."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it prints a line for each of ten retries
    try:
        return make()
    except UnknownBackbone as error:
        raise ValueError(f"{word}: {error}") from None
    except (OSError, RuntimeError, ValueError) as error:  # no network, a damaged file, a model without weights
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{word}: its weights cannot be fetched ({reason}); give random@{word} for random ones, or FILE@{word}"
        ) from None
