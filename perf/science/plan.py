"""The methods, and how long each trains: pure functions of measured costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.recipe import ROOT

RECIPES = ROOT / "config" / "science"  # a folder for each study
STUDIES = {  # name of its images (`make data NAME=...`), and title
    "fashion-mnist": "Fashion-MNIST, 28 pixels",
    "emoji": "Emoji by three hands, 64 pixels",
    "openclipart": "Open Clip Art, 96 pixels",
}
SUPERVISED = "supervised"
EQUAL_IMAGES = "two_crops_images"  # two crops with as many images as multi-crop, so in less time
STUDENT = {  # pairs: 97.5 % quantile of Student's t with one degree of freedom less
    2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262,
}  # fmt: skip
ORDER = ("multicrop", "two_crops", "deepclusterv2")  # of the rows in the table; other recipes follow


@dataclass(frozen=True)
class Method:
    """A way to train. name: of its files. title: in tables. settings: key=value in addition to the recipe.

    images_of: the method whose number of epochs it has; "" for equal time. against: the choice that it goes on from and
    is compared with; "" is the recipe. processes: they train together, on one core. supervised: trained with labels;
    the recipe then gives only the network and the normalization of the images.
    """

    name: str
    title: str
    recipe: Path
    settings: tuple[str, ...] = ()
    images_of: str = ""
    against: str = ""
    processes: int = 1

    @property
    def supervised(self) -> bool:
        return self.name == SUPERVISED


@dataclass(frozen=True)
class Cost:
    """Seconds of a method on one core. epoch: CPU seconds of each epoch; first: those once before the first epoch, to
    fill a memory; around: seconds of starting and ending the program, which is not training."""

    epoch: float
    first: float
    around: float


def methods_of(folder: Path) -> list[Method]:
    """A method for each recipe of the folder, with the words before the first colon as its title; two crops also with
    as many images as multi-crop; and supervised."""
    recipes = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    names = [name for name in ORDER if name in recipes] + [name for name in recipes if name not in ORDER]
    methods = [Method(name, title_of(recipes[name].read_text()), recipes[name]) for name in names]
    if {"multicrop", "two_crops"} <= set(recipes):
        equal = Method(EQUAL_IMAGES, "SwAV, two crops, as many images", recipes["two_crops"], images_of="multicrop")
        methods.insert(names.index("two_crops") + 1, equal)
    return [*methods, Method(SUPERVISED, "supervised, from scratch", recipes[names[0]])]


def title_of(recipe: str) -> str:
    """`# SwAV, two crops: Fashion-MNIST ...` -> `SwAV, two crops`."""
    return recipe.splitlines()[0].lstrip("# ").partition(":")[0]


def epochs_for(costs: Mapping[str, Cost], share: float, slack: float = 0.1) -> dict[str, int]:
    """Whole epochs of each method, so that all methods train for nearly the same time.

    The time is between share * (1 - slack) and share, in seconds: the one with the smallest of the largest deviations,
    and the longest of equally good ones. Each method gets at least one epoch, even if this takes longer than `share`.
    """
    smallest, chosen = float("inf"), dict.fromkeys(costs, 1)
    if share <= 0:
        return chosen
    for part in range(201):
        time = share * (1 - slack * part / 200)
        epochs = {name: max(1, round((time - cost.first) / cost.epoch)) for name, cost in costs.items()}
        deviation = max(abs(epochs[name] * cost.epoch + cost.first - time) / time for name, cost in costs.items())
        if deviation < smallest:
            smallest, chosen = deviation, epochs
    return chosen


def share_of(budget: float, spent: float, around: Sequence[float], scoring: float) -> float:
    """Seconds of training that each run gets.

    budget, spent: core-seconds in all and so far. around: seconds for start and end of each future run. scoring:
    seconds for the scores of a run.
    """
    left = budget - spent - sum(around) - scoring * len(around)
    return max(0.0, left / len(around))


def curve_epochs(epochs: int, points: int = 8) -> int:
    """Epochs between checkpoints to score: there are about `points` of them at most."""
    return max(1, round(epochs / points))


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float | None]:
    """Mean of the differences, pair by pair, and half the width of its 95 % interval by Student's t (None for a single
    pair, or for more than ten)."""
    mean, deviation = mean_and_deviation([a - b for a, b in zip(one, other, strict=True)])
    if deviation is None or len(one) not in STUDENT:
        return mean, None
    return mean, STUDENT[len(one)] * deviation / len(one) ** 0.5


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
