"""Groups of crops: the views of an image that have size, area and changes in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

CHANGES = (  # keys of `crops` that a group may have of its own
    "flip",
    "vertical_flip",
    "quarter_turn",
    "jitter",
    "grayscale",
    "blur",
    "solarize",
    "posterize",
    "custom",
)
SPLIT = "groups of one size one after the other, because crops are counted by size"


def groups_of(crops: Any) -> list[dict[str, Any]]:
    """The groups of crops that the network sees, in order, each with `count`, `size`, `scale` and its changes.

    crops: the `crops` section of a recipe, or of a checkpoint, which may be older than some keys. With `crops.groups`
    what a group does not name is the section's, size and scale are those of `crops.global`, and count is 1; without it
    they are the global and the local crops.
    """
    section: Any = OmegaConf.to_container(crops) if OmegaConf.is_config(crops) else crops
    shared = {key: section[key] for key in CHANGES if key in section}
    first = {"count": 1, "size": section["global"]["size"], "scale": section["global"]["scale"]}
    given = section.get("groups") or [section["global"], section["local"]]
    groups = [_over(first | shared, group) for group in given]
    return [group for group in groups if group["count"]]


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `base`, section by section; null and auto stand for the value of `base`."""
    merged = dict(base)
    for key, value in own.items():
        if isinstance(value, Mapping):
            merged[key] = _over(base.get(key, {}), value)
        elif value not in (None, "auto"):
            merged[key] = value
    return merged


def sizes_of_crops(crops: Any) -> list[int]:
    """Pixels a side of each group's crops, the first group's first."""
    return [int(group["size"]) for group in groups_of(crops)]
