"""Builds a backbone by name: one of the paper's ResNets, or a model of timm."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from model.resnet import RESNETS, ResNet
from model.sizes.trial import takes
from model.trial import check_features, described, first_line, sizes_near

NO_FEATURES = {  # options of timm with which a network gives something else than features
    "num_classes": "swave trains no classifier",
    "features_only": "it gives the maps of all stages in place of features",
}


class UnknownBackbone(ValueError):
    """A name that is no backbone; the message, in one line, has the nearest ones."""


def backbone_of(model: Mapping[str, Any], sizes: Sequence[int] = ()) -> nn.Module:
    """The backbone of a recipe's or checkpoint's `model:` section; otherwise as `build_backbone`."""
    options = _plain(model["options"])
    for option in options:
        if not isinstance(option, str) or option in ("name", "sizes"):
            raise ValueError(f"backbone {model['backbone']} has no option {option!r} (model.options)")
    return build_backbone(model["backbone"], sizes, **options)


def build_backbone(name: str, sizes: Sequence[int] = (), **options: Any) -> nn.Module:
    """A module from images [batch, in_chans, height, width] to features [batch, feature_dim], randomly initialized.

    name: one of RESNETS (`options` override its entries), "resnet" (all from `options`, see ResNet), or a model of timm
        (`options` go to `timm.create_model`). Those built for one size of images take others too (`model.sizes`).
    sizes: the crop sizes; a model of timm is tried with each (`model.trial.check_features`).

    Raises UnknownBackbone, and ValueError for an option or size that the backbone does not accept.
    """
    if name in RESNETS or name == "resnet":
        known = list(inspect.signature(ResNet).parameters)
        unknown = [option for option in options if option not in known]
        if unknown:
            raise ValueError(f"backbone {name} has no option {unknown[0]!r}; it has {', '.join(known)}")
        try:
            return ResNet(**(RESNETS.get(name, {}) | options))
        except (TypeError, RuntimeError, ZeroDivisionError) as error:  # wrong type or impossible size
            raise ValueError(f"backbone {name} with model.options={options}: {first_line(error)}") from None
    network = _build_timm(name, options)
    _take_sizes(network, partial(_of_size, name, options), described(name, options), sizes)
    check_features(network, name, options, sizes)
    return network


def _take_sizes(network: nn.Module, of_size: Callable[[int], nn.Module], words: str, sizes: Sequence[int]) -> None:
    """Make a network that is built for one size take the others, if it can."""
    refused = [size for size in sorted(set(sizes)) if not takes(network, size)]
    if not refused:
        return
    from model.sizes.network import Sizes  # imports torch._dynamo, which takes seconds

    several = Sizes(network, of_size)
    for size in refused:
        try:
            several.prepare(size)
        except TypeError:  # its builder has no such option: the trial gives the network's own reason
            continue
        except Exception as error:  # of any type: timm's assertions, torch's RuntimeErrors
            reason = f"{first_line(error)}{sizes_near(network.eval(), size)}"
            raise ValueError(f"{words} does not take crops of {size} pixels: {reason}") from None


def _plain(value: Any) -> Any:
    """Mappings and sequences (such as OmegaConf's) as dict and list: libraries look at the type."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in value}
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _build_timm(name: str, options: dict[str, Any]) -> nn.Module:
    import timm  # takes seconds to import, and most runs do not use it

    if not timm.is_model(name):
        names = ["resnet", *RESNETS, *timm.list_models()]
        near = difflib.get_close_matches(name, names, n=3) or [*RESNETS]
        kinds = "neither one of swave's nor a model of timm"
        raise UnknownBackbone(f"backbone {name!r} is {kinds}; nearest: {', '.join(near)}")
    for option, reason in NO_FEATURES.items():
        if options.get(option):
            raise ValueError(f"backbone {name} with model.options={options}: {reason}; leave out {option}")
    try:
        network = timm_network(name, options)
    except Exception as error:  # of any type; OSError: pretrained weights cannot be fetched
        reason = first_line(error) + _nearest_option(name, first_line(error))
        raise ValueError(f"backbone {name} with model.options={options}: {reason}") from None
    network.feature_dim = getattr(network, "head_hidden_size", None) or network.num_features
    return network


def timm_network(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A model of timm without classifier, that takes several sizes by itself where timm provides that."""
    import timm

    settings = {"num_classes": 0, "pretrained": False, **options}
    try:
        network = timm.create_model(name, **{"dynamic_img_size": True, **settings})
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        network = timm.create_model(name, **settings)
    network.in_chans = settings.get("in_chans", 3)
    return network


def _of_size(name: str, options: Mapping[str, Any], size: int) -> nn.Module:
    """A model of timm, built for images of this size."""
    return timm_network(name, {**options, "img_size": size, "pretrained": False})


def _nearest_option(name: str, reason: str) -> str:
    """Words about the nearest option of a model of timm, if it refused an option's name."""
    import timm

    wrong = re.search(r"unexpected keyword argument '(\w+)'", reason)
    if wrong is None:
        return ""
    try:
        with torch.device("meta"):
            builder = type(timm.create_model(name)).__init__
    except Exception:  # not every model can be made without memory
        return ""
    near = difflib.get_close_matches(wrong[1], inspect.signature(builder).parameters, n=1, cutoff=0.0)
    return f"; the nearest option is {near[0]}" if near else ""


def weights_channels_last(network: nn.Module) -> nn.Module:
    """Lay the weights of 2-d convolutions out as [out, height, width, in], in place; their shapes remain. Otherwise
    each call of a convolution on channels-last images, such as the crops, copies its weights first."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def checkpoint_activations(backbone: nn.Module) -> None:
    """Make the backbone keep only the inputs of its blocks and recompute the rest in backward; changes it in place.

    Raises ValueError for a backbone without this feature.
    """
    if isinstance(backbone, ResNet):
        backbone.checkpointing = True
        return
    try:
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # timm's answer where a network has it not
        reason = "engine.activation_checkpointing: this backbone does not support it; leave it false"
        raise ValueError(reason) from None
