"""What each published choice contributes: the recipe of multi-crop with one choice changed at a time (`--choices`).

The last choices are about small crops themselves. They have as many images as the recipe, so the time that crops take
plays no part, and tell which of three reasons decides how multi-crop compares with two crops: that there are more
crops, that small crops show small parts, or that they have few pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from config.groups import sizes_of_crops
from config.recipe import load_config
from perf.science.plan import Method

BASE, VIT = "multicrop", "vit"
NONE, WHOLE, LARGE = "none", "whole", "large"  # about small crops
ADAMW = "optimizer.name=adamw optimizer.base_lr=0.002 optimizer.final_lr=0.00002 optimizer.weight_decay=0.0001"
CHOICES: tuple[tuple[str, str, str], ...] = (  # name of files, title, settings; section 3.1 and appendix A of the paper
    ("queue", "a queue of 1,280 embeddings", "swav.queue.length=1280"),
    ("thawed", "prototypes never frozen", "swav.freeze_prototypes=0"),
    ("softer", "epsilon 0.05", "swav.epsilon=0.05"),
    ("sharper", "epsilon 0.015", "swav.epsilon=0.015"),
    ("fewer", "32 prototypes", "model.prototypes=32"),
    ("more", "512 prototypes", "model.prototypes=512"),
    ("blur", "blur of half the crops", "crops.blur.probability=0.5 crops.blur.sigma=[0.1,1.0]"),
    ("adamw", "AdamW in place of LARS", ADAMW),
    (VIT, "a small ViT, AdamW", f"model.backbone=vit_tiny_patch16_224 {ADAMW}"),
)
NORM = ("norm", "batch norm over 16 images (four processes)", 4)
TEACHER = ("teacher", "the ViT with a teacher", "swav.teacher.momentum=0.99")


def choices(methods: Sequence[Method]) -> list[Method]:
    """The recipe of multi-crop as it is, and with each choice; the choices about small crops; and the small ViT with a
    teacher, which is compared with the ViT. Raises ValueError if there is no such recipe."""
    recipe = next((method.recipe for method in methods if method.name == BASE), None)
    if recipe is None:
        raise ValueError(f"--choices needs the recipe {BASE}.yaml in --recipes")
    made = [Method(BASE, "the recipe", recipe)]
    for name, title, words in CHOICES:
        made.append(Method(name, title, recipe, (*words.split(), *(vit_options(recipe) if name == VIT else []))))
    name, title, processes = NORM
    made.append(Method(name, title, recipe, images_of=BASE, processes=processes))
    made += about_small_crops(recipe)
    name, title, setting = TEACHER
    vit = next(method for method in made if method.name == VIT)
    return [*made, Method(name, title, recipe, (*vit.settings, setting), against=VIT)]


def about_small_crops(recipe: Path) -> list[Method]:
    """Without small crops; small crops that show as much as the large ones; and as many large crops in their place."""
    large = load_config([str(recipe), "data.path=."]).crops["global"]
    whole = f"crops.local.scale=[{','.join(map(str, large.scale))}]"
    choices = (
        (NONE, "two large crops", ("crops.local.count=0",)),
        (WHOLE, "small crops of large parts", (whole,)),
        (LARGE, "large crops in place of the small ones", (whole, f"crops.local.size={large.size}")),
    )
    return [
        Method(name, f"{title}, as many images", recipe, settings, images_of=BASE) for name, title, settings in choices
    ]


def vit_options(recipe: Path) -> list[str]:
    """The ViT's shape, with the largest patches of up to 12 pixels into which all images of the recipe divide."""
    config = load_config([str(recipe), "data.path=."])
    common = math.gcd(*sizes_of_crops(config.crops), config.evaluation.size)
    patch = max(pixels for pixels in range(1, 13) if common % pixels == 0)
    return [f"model.options={{patch_size: {patch}, embed_dim: 96, depth: 4, num_heads: 3}}"]
