"""The candidate settings of the search that precedes the check, with a seed that the check does not use.

Both variants of SwAV have the same number of candidates. docs/science.md has their figures and marks the settings of
the recipes.
"""

from __future__ import annotations

from collections.abc import Sequence

from perf.science.plan import Method

CANDIDATES: dict[str, tuple[str, ...]] = {
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


def candidates(methods: Sequence[Method]) -> list[Method]:
    """A method for each candidate, alternating between `methods`, so that both run under the same conditions."""
    chosen = []
    for number in range(max(map(len, CANDIDATES.values()))):
        for method in methods:
            choices = CANDIDATES.get(method.name, ())
            if number < len(choices):
                name, settings = f"{method.name}-{number + 1}", tuple(choices[number].split())
                chosen.append(Method(name, method.title, method.recipe, settings))
    return chosen
