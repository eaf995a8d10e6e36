"""The user's own backbone: model.backbone=module:function imports the module and calls the function with model.options.

Only settings that the user gives may lead here (`model.backbone.backbone_of`, own_code), never the word of a file.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from common.own_code import own_function, reason_of
from model.libraries.options import check_names, names_of, takes_any


def own_network(name: str, options: Mapping[str, Any]) -> nn.Module:
    """What the function that `name` (module:function) means returns for the options, on the CPU.

    The module is looked for on Python's path, which has PYTHONPATH, and last in the current folder. Raises ValueError,
    one line.
    """
    function = own_function(name, f"backbone {name}")
    words = f"backbone {name}" + (f" with model.options={dict(options)}" if options else "")
    if not takes_any(function):
        check_names(name, options, names_of(function))
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:  # e.g. missing a required argument: 'width'
        raise ValueError(f"{words}: {error}; give it as model.options") from None
    try:
        with torch.device("cpu"):  # sizes are asked for on the meta device, on which not all code works
            network = function(**options)
    except Exception as error:
        raise ValueError(f"{words}: {reason_of(error)}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{words}: the function returned a {type(network).__name__}, not a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{words}: the network has no parameters that learn")
    if not hasattr(network, "in_chans"):
        network.in_chans = options.get("in_chans", 3)
    return network
