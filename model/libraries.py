"""Backbones from elsewhere than timm: torchvision, Hugging Face transformers, and a function of one's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.trial import described, first_line

CLASSIFIERS = ("fc", "heads", "head", "classifier")  # what torchvision calls them


def torchvision_network(name: str, size: int | None = None, weights: Any = None, **options: Any) -> nn.Module:
    """A classifier of torchvision without its last linear layer: images to features.

    size: the image size that a vision transformer is built for. weights: as torchvision names them; None: at random.
    Raises ValueError for an unknown name, and what torchvision raises for an option.
    """
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or ["resnet50"]
        raise ValueError(f"torchvision:{name}: torchvision has no such classifier; nearest: {', '.join(near)}")
    if size is not None:
        options = {"image_size": size, **options}
    if name in ("googlenet", "inception_v3") and weights is None:  # in training these give their auxiliary outputs too
        options = {"aux_logits": False, "init_weights": True, **options}
    network = torchvision.models.get_model(name, weights=weights, **options)
    part = next((part for part in CLASSIFIERS if hasattr(network, part)), None)
    classifier = getattr(network, part) if part else None
    linear = [path for path, module in (classifier or network).named_modules() if isinstance(module, nn.Linear)]
    if part is None or not linear:
        raise ValueError(f"torchvision:{name}: its classifier is no linear layer, so it has no features")
    path = f"{part}.{linear[-1]}".rstrip(".")
    network.feature_dim = network.get_submodule(path).in_features
    network.set_submodule(path, nn.Identity())
    return network


class TransformersBackbone(nn.Module):
    """A vision model of Hugging Face transformers: images to its pooled output, else to the mean of its last states."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self.interpolates = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        with torch.no_grad():
            self.feature_dim = int(self.eval()(torch.zeros(1, 3, size, size)).shape[1])
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.model(pixel_values=images, return_dict=True, **self.interpolates)
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        states = outputs.last_hidden_state
        return states.mean(1) if states.ndim == 3 else states.mean((2, 3))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, as timm's networks of this method do."""
        if enable:
            self.model.gradient_checkpointing_enable()
        else:
            self.model.gradient_checkpointing_disable()


def transformers_network(place: str, options: Mapping[str, Any]) -> nn.Module:
    """The vision model that a folder's config.json describes, or one of the hub by name, at random initialization.

    options: override entries of the configuration. Raises ValueError and ImportError, one line.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise ImportError(
            "model.backbone=transformers:... needs transformers: pip install 'transformers>=4.56,<6'"
        ) from None
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers:{place}: {first_line(error)}") from None
    unknown = [key for key in options if not hasattr(config, key)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], config.to_dict(), n=1, cutoff=0.0)
        raise ValueError(f"transformers:{place} has no option {unknown[0]!r}; the nearest option is {near[0]}")
    for key, value in options.items():
        setattr(config, key, value)
    if not getattr(config, "num_channels", None):
        raise ValueError(f"transformers:{place} is no vision model ({config.model_type})")
    size = getattr(config, "image_size", None) or 224
    return TransformersBackbone(AutoModel.from_config(config), size if isinstance(size, int) else max(size))


def own_network(place: str, options: Mapping[str, Any]) -> nn.Module:
    """What the function `module:function` returns, called with the options: images [batch, 3, s, s] to features.

    The module is imported as Python does, from the current folder too. A network without the attribute `feature_dim`
    gets it from one image of 224 pixels. Raises ValueError, one line.
    """
    module_name, _, function_name = place.partition(":")
    words = described(place, options)
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        inspect.signature(function).bind(**options)
        network = function(**options)
    except ModuleNotFoundError as error:
        raise ValueError(f"{words}: there is no module {error.name}, here or among the installed ones") from None
    except Exception as error:  # of any type: it is code of the user
        raise ValueError(f"{words}: {first_line(error)}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{words}: it returns a {type(network).__name__}, not a torch.nn.Module")
    if not hasattr(network, "feature_dim"):
        try:
            with torch.no_grad():
                features = network.eval()(torch.zeros(1, 3, 224, 224))
            network.feature_dim = int(features.shape[1])
        except Exception as error:
            raise ValueError(f"{words}: give it the attribute feature_dim ({first_line(error)})") from None
        network.train()
    return network
