"""Multi-crop and two crops on the same images at several sizes (`--sizes`): at equal time, and at equal images.

Each size scales all crops of a recipe by the same factor. A crop then shows the same part of an image in other pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config.recipe import load_config
from perf.science.plan import EQUAL_IMAGES, Method

SIZES = (28, 64, 96)  # pixels of an image in evaluation
PAIR = ("multicrop", "two_crops")


def sizes(methods: Sequence[Method]) -> list[Method]:
    """Multi-crop, two crops, and two crops with as many images as multi-crop, at each size. Raises ValueError if one of
    the recipes is missing."""
    recipes = {method.name: method for method in methods if method.name in PAIR}
    if len(recipes) < len(PAIR):
        raise ValueError(f"--sizes needs the recipes {' and '.join(f'{name}.yaml' for name in PAIR)} in --recipes")
    made = []
    for pixels in SIZES:
        for name, images_of in (("multicrop", ""), ("two_crops", ""), (EQUAL_IMAGES, "multicrop")):
            method = recipes["two_crops" if images_of else name]
            title = f"{method.title}, {pixels} pixels{', as many images' if images_of else ''}"
            of = named(images_of, pixels) if images_of else ""
            made.append(Method(named(name, pixels), title, method.recipe, scaled(method.recipe, pixels), images_of=of))
    return made


def named(method: str, pixels: int) -> str:
    """The name of a method at one size."""
    return f"{method}-{pixels}"


def scaled(recipe: Path, pixels: int) -> tuple[str, ...]:
    """The settings that make `pixels` of the recipe's evaluation.size, and scale its crops, to even numbers."""
    config = load_config([str(recipe), "data.path=."])
    given = {"crops.global.size": config.crops["global"].size, "crops.local.size": config.crops.local.size}
    factor = pixels / config.evaluation.size
    crops = [f"{key}={2 * round(size * factor / 2)}" for key, size in given.items()]
    return (*crops, f"evaluation.size={pixels}")
