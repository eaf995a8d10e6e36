"""The version of swave, and of Python and the packages that results depend on."""

from __future__ import annotations

import platform
import tomllib
from importlib import metadata

from common.paths import ROOT

PACKAGES = (
    "torch", "torchvision", "timm", "deepspeed", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "ffcv", "numba", "numpy",
    "pillow",
)  # fmt: skip


def version() -> str:
    """swave's version from pyproject.toml: the code runs from its repository and is not installed as a package."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def versions() -> dict[str, str]:
    """Versions by name: swave, python, and the installed ones of PACKAGES."""
    numbers = {"swave": version(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            numbers[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return numbers
