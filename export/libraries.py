"""Lines of Python that build a backbone of torchvision, transformers or the user's own code as it was trained."""

from __future__ import annotations

from typing import Any

from model.libraries.names import is_own_code, library_of
from model.libraries.options import names_of
from training.trained_network import Trained


def library_code(trained: Trained) -> list[str]:
    """The lines that build `network` in eval mode with the names of its tensors; [] for our ResNets and for timm."""
    name, backbone = trained.backbone_name, trained.network.backbone
    if is_own_code(name):
        module, _, function = name.partition(":")
        return [f"from {module} import {function}", f"network = {function}({_arguments(trained.options)}).eval()"]
    library, inner = library_of(name)
    if library == "torchvision":
        options = {key: value for key, value in trained.options.items() if key != "in_chans"}
        if "aux_logits" in names_of(type(backbone)):
            options = {"aux_logits": False, "init_weights": True, **options}
        return [
            "import torch, torchvision",
            f"network = torchvision.models.{inner}({_arguments(options)}).eval()",
            f"network.set_submodule({backbone.end})",
        ]
    if library == "transformers":
        config: Any = backbone.config
        kind = type(backbone).__name__
        pooling = ", add_pooling_layer=False" if "add_pooling_layer" in names_of(type(backbone)) else ""
        return [
            f"from transformers import {kind}, {type(config).__name__}",
            f"network = {kind}({type(config).__name__}(**{_different(config)}){pooling}).eval()",
        ]
    return []


def _arguments(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def _different(config: Any) -> dict[str, Any]:
    """The values of a configuration of transformers that are not its class's defaults."""
    from model.libraries.transformers_models import option_names

    default = type(config)()
    return {
        name: getattr(config, name)
        for name in option_names(type(config))
        if hasattr(config, name) and getattr(config, name) != getattr(default, name, None)
    }
