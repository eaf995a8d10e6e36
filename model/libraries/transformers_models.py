"""Vision backbones of Hugging Face transformers, built from a configuration: of a folder, or a kind's default one.

Nothing is downloaded, and no code of a folder runs: its config.json gives values for transformers' own classes.
"""

from __future__ import annotations

import difflib
import itertools
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from config.backbones import missing
from model.libraries.names import UnknownBackbone
from model.libraries.options import check_names, names_of

OF_TIMM = ("timm_wrapper", "timm_backbone")
UNMASKED = {"mask_ratio": 0.0}  # masked autoencoders leave out patches at random


def transformers_network(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The network of transformers from images to features, with the names of its tensors as `AutoModel` has them.

    name: a folder with config.json, a model type (`vit`), or one of its classes (`ViTModel`, `ViTConfig`). options: of
    its configuration. Features are the pooled output, if it has no weights; else the class token or the mean over
    tokens. Raises UnknownBackbone, and ValueError in one line.
    """
    words = f"backbone transformers:{name}"
    if needs := missing("transformers"):
        raise ValueError(f"{words} {needs}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be fetched
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    kind, values = _configuration(name)
    if kind in OF_TIMM:
        raise UnknownBackbone(f"{words}: {kind} wraps timm; give model.backbone the name of timm's model")
    kinds = transformers.CONFIG_MAPPING
    known = option_names(kinds[kind])
    given = {"num_channels" if option == "in_chans" else option: value for option, value in options.items()}
    check_names(f"transformers:{name}", given, known)
    try:
        unmasked = {key: value for key, value in UNMASKED.items() if key in known}
        config = kinds[kind](**unmasked | {key: value for key, value in values.items() if key in known} | given)
        network = transformers.AutoModel.from_config(config, trust_remote_code=False)
        if "add_pooling_layer" in names_of(type(network)):  # its layers would belong to a classifier
            network = type(network)(config, add_pooling_layer=False)
    except Exception as error:  # of many kinds: strict configurations, shapes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        shown = f" with model.options={dict(options)}" if options else ""
        raise ValueError(f"{words}{shown}: {reason}") from None
    if network.main_input_name != "pixel_values":
        raise ValueError(f"{words}: {type(network).__name__} takes {network.main_input_name}, not images")
    network.in_chans = getattr(config, "num_channels", 3)
    network.__class__ = _giving_features(type(network))
    return network


def option_names(config_class: Any) -> list[str]:
    """The fields of a configuration class that only this class has."""
    import transformers

    common = set(names_of(transformers.PretrainedConfig))
    return [name for name in names_of(config_class) if name not in common and not name.startswith("_")]


def of_size(name: str, options: Mapping[str, Any]) -> Callable[[int], nn.Module] | None:
    """A function that builds the same network for images of a size; None if its configuration has no size."""
    import transformers

    if "image_size" not in option_names(transformers.CONFIG_MAPPING[_configuration(name)[0]]):
        return None
    return lambda size: transformers_network(name, {**options, "image_size": size})


def _configuration(name: str) -> tuple[str, dict[str, Any]]:
    """The model type, and the values of a folder's config.json ({} for a name)."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    words, folder = f"backbone transformers:{name}", Path(name).expanduser()
    if os.sep in name or folder.is_dir():
        try:
            values = json.loads((folder / "config.json").read_bytes())
            kind = str(values["model_type"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no JSON with a model_type"
            given = "give a folder with config.json, or a model type such as vit"
            raise UnknownBackbone(f"{words}: {folder / 'config.json'}: {reason}; {given}") from None
        if kind in MODEL_MAPPING_NAMES:
            return kind, values
        raise UnknownBackbone(f"{words}: transformers has no network for its model_type {kind!r}")
    kinds = dict.fromkeys(MODEL_MAPPING_NAMES)
    classes: dict[str, str] = {}
    for kind in kinds:
        network = MODEL_MAPPING_NAMES[kind]
        for each in (CONFIG_MAPPING_NAMES.get(kind, ""), *([network] if isinstance(network, str) else network)):
            classes.setdefault(each, kind)
    if name in kinds or name in classes:
        return (name if name in kinds else classes[name]), {}
    near = difflib.get_close_matches(name, [*kinds, *classes], n=3) or ["vit", "dinov2", "convnext"]
    raise UnknownBackbone(f"{words}: neither a folder nor a model type of transformers; nearest: {', '.join(near)}")


def _giving_features(kind: type[nn.Module]) -> type[nn.Module]:
    """The class with another forward pass. A module around the network would give its tensors other names."""
    options = interpolated(kind)

    def forward(self: nn.Module, pixel_values: Tensor) -> Tensor:
        return features_of(self, kind.forward(self, pixel_values, **options))

    def set_grad_checkpointing(self: Any, enable: bool = True) -> None:
        assert self.supports_gradient_checkpointing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # version 5 has another name, which version 4 has not
            self.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    more: dict[str, Callable[..., Any]] = {"forward": forward, "set_grad_checkpointing": set_grad_checkpointing}
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **more})


def interpolated(kind: type[nn.Module]) -> dict[str, bool]:
    """The option of a class's forward pass with which it interpolates its positions to images of any size."""
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in names_of(kind.forward) else {}


WAYS: dict[str, Callable[[Any], Tensor]] = {  # as Python after `output.`, and as a function
    "pooler_output.flatten(1)": lambda output: output.pooler_output.flatten(1),
    "last_hidden_state.mean((2, 3))": lambda output: output.last_hidden_state.mean((2, 3)),
    "feature_maps[-1].mean((2, 3))": lambda output: output.feature_maps[-1].mean((2, 3)),
    "last_hidden_state[:, 0]": lambda output: output.last_hidden_state[:, 0],
    "last_hidden_state.mean(1)": lambda output: output.last_hidden_state.mean(1),
}


def features_of(network: nn.Module, output: Any) -> Tensor:
    """Features [batch, feature_dim] out of the output of a network of transformers."""
    return WAYS[way_of(network, output)](output)


def way_of(network: nn.Module, output: Any) -> str:
    """Where the features are in the output, a key of WAYS."""
    if getattr(output, "pooler_output", None) is not None:
        return "pooler_output.flatten(1)"
    if getattr(output, "last_hidden_state", None) is None:  # of a class for detectors
        return "feature_maps[-1].mean((2, 3))"
    if output.last_hidden_state.ndim == 4:
        return "last_hidden_state.mean((2, 3))"
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())  # with LoRA it is a buffer
    has_class = any(name.rpartition(".")[2] == "cls_token" for name, _ in tensors)
    return "last_hidden_state[:, 0]" if has_class else "last_hidden_state.mean(1)"
