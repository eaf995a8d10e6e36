"""Networks of torchvision by name, without the last layer of their classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from torch import nn

from config.backbones import NO_CLASSIFIER, unknown_backbone
from model.libraries.names import UnknownBackbone
from model.libraries.options import check_names, names_of

CLASSIFIERS = ("fc", "heads", "head", "classifier")  # what torchvision calls them
OF_WEIGHTS = ("weights", "progress", "num_classes", "block", "norm_layer")  # set by swave, or no plain values


def torchvision_network(
    name: str, options: Mapping[str, Any], weights: Any = None, auxiliary: bool = False
) -> nn.Module:
    """A classifier of torchvision that ends before its last linear layer, or with its average pooling where it ends in
    a convolution. Dropout of the classifier is off, unless model.options name it.

    Attributes: `feature_dim`, and `end`, the arguments of set_submodule with which torchvision's own network ends so.

    weights: an enum of torchvision, None: random. auxiliary: with the classifiers of inner layers that Inception and
        GoogLeNet have in files; in training such a network gives more than features.

    Raises UnknownBackbone, and ValueError in one line for options.
    """
    import torchvision

    words = f"backbone torchvision:{name}"
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UnknownBackbone(f"{words}: {unknown_backbone(f'torchvision:{name}') or NO_CLASSIFIER}")
    given = dict(options)
    if given.pop("in_chans", 3) != 3:
        raise ValueError(f"{words} takes RGB images only; take a model of timm, or data.channels=rgb")
    known = _options(name)
    check_names(f"torchvision:{name}", given, known)
    settings = {"aux_logits": auxiliary, "init_weights": True} if "aux_logits" in known and weights is None else {}
    try:
        network = _made(name, weights, {**settings, **given})
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        if weights is not None:
            raise
        raise ValueError(f"{words} with model.options={given}: {str(error).splitlines()[0][:200]}") from None
    _end_before_classifier(network, keep_dropout="dropout" in given)
    return network


def size_options(network: nn.Module, size: int) -> dict[str, Any]:
    """The option with which torchvision builds such a network for images of this size; {} if it has none."""
    names = names_of(type(network))
    if "image_size" in names:
        return {"image_size": size}
    return {"input_size": (size, size)} if "input_size" in names else {}


def _options(name: str) -> list[str]:
    """Of the builder and of the class that it makes; the builder sets some of these itself."""
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    names = [*names_of(builder), *names_of(get_type_hints(builder)["return"])]
    return [option for option in dict.fromkeys(names) if option not in OF_WEIGHTS]


def _made(name: str, weights: Any, options: Mapping[str, Any]) -> nn.Module:
    import torchvision

    try:
        return torchvision.models.get_model(name, weights=weights, **options)
    except NotImplementedError:  # RegNet computes its widths with tensors, which the meta device does not
        with torch.device("cpu"):
            return torchvision.models.get_model(name, weights=weights, **options)


def _end_before_classifier(network: nn.Module, keep_dropout: bool) -> None:
    classifier = next(part for part in CLASSIFIERS if hasattr(network, part))
    inside = dict(network.get_submodule(classifier).named_modules(prefix=classifier))
    linear = [(path, module) for path, module in inside.items() if isinstance(module, nn.Linear)]
    if linear:
        path, last = linear[-1]
        parent = network.get_submodule(path.rpartition(".")[0])
        setattr(parent, path.rpartition(".")[2], nn.Identity())
        features, end = last.in_features, f'"{path}", torch.nn.Identity()'
    else:  # SqueezeNet
        convolution = next(module for module in inside.values() if isinstance(module, nn.Conv2d))
        setattr(network, classifier, nn.AdaptiveAvgPool2d(1))
        features, end = convolution.in_channels, f'"{classifier}", torch.nn.AdaptiveAvgPool2d(1)'
    network.feature_dim, network.end = features, end  # type: ignore[assignment]
    for module in [*network.children(), *inside.values()]:
        if isinstance(module, nn.Dropout) and not keep_dropout:
            module.p = 0.0
