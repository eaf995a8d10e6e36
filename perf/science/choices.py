"""What each published choice contributes: the recipe of multi-crop with one choice changed at a time (`--choices`).

Batch norm in groups is not among them: it needs several processes, and each run here has one.
"""

from __future__ import annotations

from collections.abc import Sequence

from perf.science.plan import Method

BASE = "multicrop"
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
)


def choices(methods: Sequence[Method]) -> list[Method]:
    """The recipe of multi-crop as it is, and with each choice. Raises ValueError if there is no such recipe."""
    for method in methods:
        if method.name == BASE:
            changed = [Method(name, title, method.recipe, tuple(words.split())) for name, title, words in CHOICES]
            return [Method(BASE, "the recipe", method.recipe), *changed]
    raise ValueError(f"--choices needs the recipe {BASE}.yaml in --recipes")
