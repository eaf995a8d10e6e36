"""The user's own backbone: model.backbone=module:function imports the module and calls the function with model.options.

Only settings that the user gives may lead here (`model.backbone.backbone_of`, own_code), never the word of a file.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from model.libraries.options import check_names, names_of, takes_any


def own_network(name: str, options: Mapping[str, Any]) -> nn.Module:
    """What the function that `name` (module:function) means returns for the options, on the CPU.

    The module is looked for on Python's path, which has PYTHONPATH, and last in the current folder. Raises ValueError,
    one line.
    """
    function = _function(name)
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
        raise ValueError(f"{words}: {_reason(error)}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{words}: the function returned a {type(network).__name__}, not a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{words}: the network has no parameters that learn")
    if not hasattr(network, "in_chans"):
        network.in_chans = options.get("in_chans", 3)
    return network


def _function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that a file there hides no module of swave or a package
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"backbone {name}: {_reason(error)}") from None
        where = f"the current folder ({folder}) or PYTHONPATH"
        raise ValueError(f"backbone {name}: there is no module {error.name} in {where}") from None
    except Exception as error:
        raise ValueError(f"backbone {name}: {_reason(error)}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        source = getattr(module, "__file__", None) or "built in"
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(function_name, names, n=3, cutoff=0.3)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"backbone {name}: {module_name} ({source}) has no function {function_name}{nearest}")
    return function


def _reason(error: Exception) -> str:
    """Type, first line and place of an error in the user's code."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}{line and f': {line[:200]}'}{place}"
