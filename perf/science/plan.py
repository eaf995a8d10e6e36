"""Which methods are compared, and how long each may train: pure functions over what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.recipe import ROOT

RECIPES = ROOT / "config" / "science"
SUPERVISED = "supervised"
ORDER = ("multicrop", "two_crops", "deepclusterv2")  # of the table; further recipes follow


@dataclass(frozen=True)
class Method:
    """name: of its files. title: in tables. recipe: what it is trained with. settings: key=value beside the recipe's.
    supervised: trained with labels, the recipe gives only the network and the images' normalisation."""

    name: str
    title: str
    recipe: Path
    settings: tuple[str, ...] = ()

    @property
    def supervised(self) -> bool:
        return self.name == SUPERVISED


@dataclass(frozen=True)
class Cost:
    """Seconds of a method on one core: of an epoch; of what comes once before the first (a memory to be filled); and
    of starting and ending the program, which are not training."""

    epoch: float
    first: float
    around: float


def methods_of(folder: Path = RECIPES) -> list[Method]:
    """A method for each recipe of the folder, its title the head's words before the colon; and supervised training."""
    recipes = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    names = [name for name in ORDER if name in recipes] + [name for name in recipes if name not in ORDER]
    methods = [Method(name, title_of(recipes[name].read_text()), recipes[name]) for name in names]
    return [*methods, Method(SUPERVISED, "supervised, from scratch", recipes[names[0]])]


def title_of(recipe: str) -> str:
    """`# SwAV, two crops: Fashion-MNIST ...` -> `SwAV, two crops`."""
    return recipe.splitlines()[0].lstrip("# ").partition(":")[0]


def epochs_for(costs: Mapping[str, Cost], share: float, slack: float = 0.1) -> dict[str, int]:
    """Whole epochs of each method, so that all train for as nearly the same time as whole epochs allow.

    That time is chosen between share * (1 - slack) and share, seconds: where the largest deviation from it is least,
    and the longest of those that do equally well. One epoch at least, so a share too small for that is overrun.
    """
    best, chosen = float("inf"), dict.fromkeys(costs, 1)
    if share <= 0:
        return chosen
    for part in range(201):
        time = share * (1 - slack * part / 200)
        epochs = {name: max(1, round((time - cost.first) / cost.epoch)) for name, cost in costs.items()}
        off = max(abs(epochs[name] * cost.epoch + cost.first - time) / time for name, cost in costs.items())
        if off < best:
            best, chosen = off, epochs
    return chosen


def share_of(budget: float, spent: float, around: Sequence[float], scoring: float) -> float:
    """Seconds of training that each run gets.

    budget, spent: core-seconds in all and so far. around: of each run to come, what its start and end take. scoring:
    what a run's scores take.
    """
    left = budget - spent - sum(around) - scoring * len(around)
    return max(0.0, left / len(around))


def curve_epochs(epochs: int, points: int = 8) -> int:
    """Every how many epochs a checkpoint is kept to be scored: at most about `points` of them."""
    return max(1, round(epochs / points))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (None of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
