"""The candidate settings of the search that precedes the check, with a seed and a split that the check does not use: a
fifth of the training images is its test.

Both variants of SwAV have the same number of candidates, which name all that the search changes, so that they stay
true when a recipe takes the settings of one. docs/science.md has their figures and marks the settings of
the recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perf.science.plan import Method

SMALL = {  # for 28 pixels
    "multicrop": (
        "crops.local.count=2 crops.local.size=12 crops.local.scale=[0.1,0.4]",
        "crops.local.count=4 crops.local.size=12 crops.local.scale=[0.1,0.4]",
        "crops.local.count=2 crops.local.size=12 crops.local.scale=[0.2,0.5]",
        "crops.local.count=2 crops.local.size=14 crops.local.scale=[0.2,0.6]",
        "crops.local.count=2 crops.local.size=12 crops.local.scale=[0.4,1.0]",
        "crops.local.count=1 crops.local.size=12 crops.local.scale=[0.2,0.5]",
        "crops.local.count=2 crops.local.size=12 crops.local.scale=[0.2,0.5] optimizer.final_lr=0.5",
    ),
    "two_crops": (
        "crops.global.size=20 crops.global.scale=[0.3,1.0]",
        "crops.global.size=20 crops.global.scale=[0.2,1.0]",
        "crops.global.size=20 crops.global.scale=[0.5,1.0]",
        "crops.global.size=24 crops.global.scale=[0.3,1.0]",
        "crops.global.size=28 crops.global.scale=[0.3,1.0]",
        "crops.global.size=16 crops.global.scale=[0.2,1.0]",
        "crops.global.size=20 crops.global.scale=[0.3,1.0] optimizer.final_lr=0.5",
    ),
}
EMOJI = {  # for 64 pixels
    "multicrop": (
        "crops.global.size=64 crops.local.count=4 crops.local.size=32 crops.local.scale=[0.1,0.4]",
        "crops.global.size=64 crops.local.count=4 crops.local.size=24 crops.local.scale=[0.1,0.4]",
        "crops.global.size=64 crops.local.count=2 crops.local.size=32 crops.local.scale=[0.2,0.6]",
        "crops.global.size=48 crops.local.count=4 crops.local.size=24 crops.local.scale=[0.1,0.4]",
    ),
    "two_crops": (
        "crops.global.size=64 crops.global.scale=[0.3,1.0]",
        "crops.global.size=64 crops.global.scale=[0.14,1.0]",
        "crops.global.size=48 crops.global.scale=[0.3,1.0]",
        "crops.global.size=64 crops.global.scale=[0.5,1.0]",
    ),
}
OPENCLIPART = {  # the same for 96 pixels, and a lower epsilon
    "multicrop": (
        "crops.global.size=96 crops.local.count=4 crops.local.size=48 crops.local.scale=[0.1,0.4]",
        "crops.global.size=96 crops.local.count=4 crops.local.size=36 crops.local.scale=[0.1,0.4]",
        "crops.global.size=96 crops.local.count=2 crops.local.size=48 crops.local.scale=[0.2,0.6]",
        "crops.global.size=72 crops.local.count=4 crops.local.size=36 crops.local.scale=[0.1,0.4]",
        "crops.global.size=64 crops.local.count=4 crops.local.size=32 crops.local.scale=[0.2,0.6]",
        "crops.global.size=64 crops.local.count=4 crops.local.size=32 crops.local.scale=[0.2,0.6] swav.epsilon=0.02",
    ),
    "two_crops": (
        "crops.global.size=96 crops.global.scale=[0.3,1.0]",
        "crops.global.size=96 crops.global.scale=[0.14,1.0]",
        "crops.global.size=72 crops.global.scale=[0.3,1.0]",
        "crops.global.size=96 crops.global.scale=[0.5,1.0]",
        "crops.global.size=64 crops.global.scale=[0.3,1.0]",
        "crops.global.size=64 crops.global.scale=[0.3,1.0] swav.epsilon=0.02",
    ),
}
CANDIDATES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "fashion-mnist": SMALL, "emoji": EMOJI, "openclipart": OPENCLIPART,
}  # fmt: skip


def candidates(methods: Sequence[Method], study: str) -> list[Method]:
    """A method for each candidate, alternating between `methods`, so that both run under the same conditions."""
    chosen = []
    for number in range(max(map(len, CANDIDATES[study].values()))):
        for method in methods:
            choices = CANDIDATES[study].get(method.name, ())
            if number < len(choices):
                name, settings = f"{method.name}-{number + 1}", tuple(choices[number].split())
                chosen.append(Method(name, method.title, method.recipe, settings))
    return chosen
