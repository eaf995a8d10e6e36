"""Which backbones there are, without importing them: a misspelt name is refused before any work begins.

The names of a library are those that its source files register; importing them takes seconds.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from common.own_code import FUNCTION

OWN = ("resnet", "resnet18", "resnet34", "resnet50", "resnet50w2", "resnet50w4", "resnet50w5")  # of model/resnet.py
REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)
RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.MULTILINE | re.DOTALL)
LIBRARIES = ("timm", "torchvision", "transformers")
KINDS = "neither one of swave's nor a model of timm (others: torchvision:NAME, transformers:NAME, module:function)"

NEEDED = {"transformers": "'transformers>=4.56,<6'", "peft": "'peft>=0.15'"}  # packages that only some runs need
NO_CLASSIFIER = "torchvision has no such classifier"


def unknown_backbone(name: str) -> str:
    """What is wrong with the name of a backbone, and the nearest ones, in one line; '' for one that there is, or that
    only the library knows: of transformers, a function of the user's."""
    library, _, inner = name.partition(":")
    if name in OWN or library == "transformers" or (FUNCTION.fullmatch(name) and library not in LIBRARIES):
        return ""
    package = "torchvision" if library == "torchvision" else "timm"
    current, old = registered(package)
    known = inner if library == "torchvision" else name.partition(".")[0]  # timm's weights: NAME.TAG
    if known in current or known in old or not current:
        return ""
    if library == "torchvision":
        near = difflib.get_close_matches(inner, sorted(current), n=3) or ["resnet50"]
        return f"{NO_CLASSIFIER}; nearest: {', '.join(near)}"
    near = difflib.get_close_matches((inner or name).lower(), sorted({*OWN, *current}), n=3) or [*OWN[1:]]
    return f"{KINDS}; nearest: {', '.join(near)}"


def missing(package: str) -> str:
    """How to install a package that is not there; '' if it is."""
    return "" if find_spec(package) else f"needs {package}: .venv/bin/python -m pip install {NEEDED[package]}"


@cache
def registered(package: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names of a library's networks, and old names that it still takes; empty if its sources are not there."""
    spec = find_spec(package)
    files = sorted(Path(spec.origin).parent.glob("models/*.py")) if spec and spec.origin else []
    texts = [file.read_text("utf-8", "replace") for file in files]
    old = {
        name for text in texts for names in RENAMED.findall(text) for name in re.findall(r"['\"](\w+)['\"]\s*:", names)
    }
    return frozenset(name for text in texts for name in REGISTERED.findall(text)), frozenset(old)
