"""What each published choice contributes: the recipe of multi-crop with one choice changed at a time (`--choices`).

Batch norm in groups is not among them: it needs several processes, and each run here has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from config.groups import sizes_of_crops
from config.recipe import load_config
from perf.science.plan import Method

BASE, VIT = "multicrop", "vit"
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
TEACHER = ("teacher", "the ViT with a teacher", "swav.teacher.momentum=0.99")


def choices(methods: Sequence[Method]) -> list[Method]:
    """The recipe of multi-crop as it is, and with each choice; then the small ViT with a teacher, which is compared
    with the ViT. Raises ValueError if there is no such recipe."""
    recipe = next((method.recipe for method in methods if method.name == BASE), None)
    if recipe is None:
        raise ValueError(f"--choices needs the recipe {BASE}.yaml in --recipes")
    made = [Method(BASE, "the recipe", recipe)]
    for name, title, words in CHOICES:
        made.append(Method(name, title, recipe, (*words.split(), *(vit_options(recipe) if name == VIT else []))))
    name, title, setting = TEACHER
    return [*made, Method(name, title, recipe, (*made[-1].settings, setting), against=VIT)]


def vit_options(recipe: Path) -> list[str]:
    """The ViT's shape, with the largest patches of up to 12 pixels into which all images of the recipe divide."""
    config = load_config([str(recipe), "data.path=."])
    common = math.gcd(*sizes_of_crops(config.crops), config.evaluation.size)
    patch = max(pixels for pixels in range(1, 13) if common % pixels == 0)
    return [f"model.options={{patch_size: {patch}, embed_dim: 96, depth: 4, num_heads: 3}}"]
