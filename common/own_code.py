"""The user's own code: a setting says module:function, and the module is imported.

Only settings that the user gives may lead here, never the word of a file.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any

FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # module:function


def check_module(name: str, words: str) -> None:
    """Raise ValueError, one line, if the module that `name` (module:function) means is nowhere, or the package that has
    it. Nothing is imported. words: how messages name it."""
    module = name.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(module) is None and PathFinder.find_spec(module, [os.getcwd()]) is None:
        raise ValueError(f"{words}: there is no module {module} in {_places()}")


def own_function(name: str, words: str) -> Callable[..., Any]:
    """The function that `name` (module:function) means. words: how messages name it.

    The module is looked for on Python's path, which has PYTHONPATH, and last in the current folder. Raises ValueError,
    one line.
    """
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that a file there hides no module of swave or a package
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{words}: {reason_of(error)}") from None
        raise ValueError(f"{words}: there is no module {error.name} in {_places()}") from None
    except Exception as error:
        raise ValueError(f"{words}: {reason_of(error)}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        source = getattr(module, "__file__", None) or "built in"
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(function_name, names, n=3, cutoff=0.3)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"{words}: {module_name} ({source}) has no function {function_name}{nearest}")
    return function


def _places() -> str:
    return f"the current folder ({os.getcwd()}) or PYTHONPATH"


def reason_of(error: Exception) -> str:
    """Type, first line and place of an error in the user's code."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}{line and f': {line[:200]}'}{place}"
