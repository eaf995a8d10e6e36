"""Builds a backbone by name: one of the paper's ResNets, a model of timm or another library, or the user's own."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from config.backbones import KINDS, OWN, unknown_backbone
from model.libraries.names import UnknownBackbone, is_own_code, library_of
from model.libraries.own_function import own_network
from model.libraries.torchvision_models import size_options, torchvision_network
from model.libraries.transformers_models import of_size as transformers_of_size
from model.libraries.transformers_models import transformers_network
from model.resnet import RESNETS, ResNet
from model.sizes.trial import takes
from model.trial import check_features, described, feature_dim, first_line, sizes_near

NO_FEATURES = {  # options of timm with which a network gives something else than features
    "num_classes": "swave trains no classifier",
    "features_only": "it gives the maps of all stages in place of features",
}


def backbone_of(model: Mapping[str, Any], sizes: Sequence[int] = (), own_code: bool = False) -> nn.Module:
    """The backbone of a recipe's or checkpoint's `model:` section; otherwise as `build_backbone`.

    own_code: whether `module:function` is imported and called. True only for settings that the user gives, in a recipe
        or on the command line; a file, such as a checkpoint, could name any function.
    """
    name, options = str(model["backbone"]), _plain(model["options"])
    for option in options:
        if not isinstance(option, str) or option in ("name", "sizes"):
            raise ValueError(f"backbone {name} has no option {option!r} (model.options)")
    if own_code and is_own_code(name):
        return _tried(own_network(name, options), name, options, sizes)
    return build_backbone(name, sizes, **options)


def build_backbone(name: str, sizes: Sequence[int] = (), **options: Any) -> nn.Module:
    """A module from images [batch, in_chans, height, width] to features [batch, feature_dim], randomly initialized.

    name: one of RESNETS (`options` override its entries), "resnet" (all from `options`, see ResNet), a model of timm
        (`options` go to `timm.create_model`), torchvision:NAME or transformers:NAME (`model.libraries`). Networks built
        for one size of images take others too (`model.sizes`). It runs no module:function; `backbone_of` may.
    sizes: the crop sizes; a network of another library is tried with each (`model.trial.check_features`).

    Raises UnknownBackbone, and ValueError for an option or size that the backbone does not accept.
    """
    if name in OWN:
        known = list(inspect.signature(ResNet).parameters)
        unknown = [option for option in options if option not in known]
        if unknown:
            raise ValueError(f"backbone {name} has no option {unknown[0]!r}; it has {', '.join(known)}")
        try:
            return ResNet(**(RESNETS.get(name, {}) | options))
        except (TypeError, RuntimeError, ZeroDivisionError) as error:  # wrong type or impossible size
            raise ValueError(f"backbone {name} with model.options={options}: {first_line(error)}") from None
    library, inner = library_of(name)
    if is_own_code(name):
        raise ValueError(f"backbone {name} is a function of the user's, which only the user's own settings may name")
    of_size: Callable[[int], nn.Module] | None = partial(_of_size, name, options)
    if library == "torchvision":
        network = torchvision_network(inner, options)
        of_size = _torchvision_of_size(inner, options, network)
    elif library == "transformers":
        network, of_size = transformers_network(inner, options), transformers_of_size(inner, options)
    else:
        network = _build_timm(name, options)
    if of_size is not None:
        _take_sizes(network, of_size, described(name, options), sizes)
    return _tried(network, name, options, sizes)


def _tried(network: nn.Module, name: str, options: Mapping[str, Any], sizes: Sequence[int]) -> nn.Module:
    """The network with `feature_dim`, found by running it if it has none, after a trial with each size."""
    if not hasattr(network, "feature_dim"):
        network.feature_dim = feature_dim(network, name, options, sizes)  # type: ignore[assignment]
    check_features(network, name, options, sizes)
    return network


def _torchvision_of_size(
    name: str, options: Mapping[str, Any], network: nn.Module
) -> Callable[[int], nn.Module] | None:
    """A function that builds the network for images of a size; None if its builder has no such option."""
    if not size_options(network, 0):
        return None
    return lambda size: torchvision_network(name, {**options, **size_options(network, size)})


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
        raise UnknownBackbone(f"backbone {name!r} is {unknown_backbone(name) or KINDS}")
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


def stride_outside(network: nn.Module) -> None:
    """Let 1 x 1 convolutions with a stride get every stride-th pixel as their whole input, in place: the results are
    the same. Before training on a CPU.

    With some numbers of channels, oneDNN's backward pass of such convolutions for AVX-512 writes beyond its memory
    (torch 2.11), and the process may end or compute with other values.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1) or module.padding != (0, 0):
            continue
        if module.stride != (1, 1) and module.in_channels % 16:
            module.register_forward_pre_hook(partial(_every_pixel, module.stride))
            module.stride = (1, 1)


def _every_pixel(stride: tuple[int, ...], _module: nn.Module, given: tuple[Tensor]) -> Tensor:
    return given[0][:, :, :: stride[0], :: stride[1]]


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
