"""Checks model.options against the signature of what they are passed to."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def names_of(function: Callable[..., Any]) -> list[str]:
    """The parameters of a function, or of a class's `__init__`, that can be given by name."""
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in NAMED]


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function has `**options`."""
    return any(p.kind == inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def check_names(name: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError, one line, for an option that is not among the known ones."""
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1, cutoff=0.0)
            nearest = f"; the nearest option is {near[0]}" if near else "; it has none"
            raise ValueError(f"backbone {name} has no option {option!r} (model.options){nearest}")
