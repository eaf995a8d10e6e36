"""Where the tiles of an image are, and which of them are kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import ge, gt, le, lt
from typing import NamedTuple

from numpy.typing import NDArray

from pipeline.dataset.table import DatasetError

MOST = 1 << 14  # pixels of a tile's side
OPERATORS: dict[str, Callable[[float, float], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}
MEASURES: dict[str, Callable[[NDArray], float]] = {
    "mean": lambda tile: float(tile.mean(dtype=float)),
    "std": lambda tile: float(tile.std(axis=(0, 1), dtype=float).mean()),
    "min": lambda tile: float(tile.min()),
    "max": lambda tile: float(tile.max()),
}
RULE = re.compile(rf"\s*({'|'.join(MEASURES)})\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)\s*")


class Tiling(NamedTuple):
    """Tiles of `size` x `size` pixels, of which neighbors share `overlap` pixels. keep: rules such as 'std>8', with
    commas between; '' keeps all."""

    size: int
    overlap: int = 0
    keep: str = ""


def check_tiling(tiling: Tiling) -> None:
    """Raise DatasetError for sizes that make no tiles, and for a rule that says nothing."""
    if not 8 <= tiling.size <= MOST:
        raise DatasetError(f"--tile={tiling.size}: give a number from 8 to {MOST:,} (pixels)")
    if not 0 <= tiling.overlap < tiling.size:
        raise DatasetError(f"--overlap={tiling.overlap}: give a number from 0 to --tile={tiling.size} less 1")
    rules_of(tiling.keep)


def rules_of(keep: str) -> list[tuple[str, str, float]]:
    """Measure, operator and number of each rule. Raises DatasetError."""
    rules = []
    for text in keep.split(",") if keep else ():
        rule = RULE.fullmatch(text)
        if rule is None:
            known = ", ".join(MEASURES)
            raise DatasetError(f"--keep={keep}: expected one of {known}, a sign and a number, e.g. 'std>8,mean<230'")
        rules.append((rule[1], rule[2], float(rule[3])))
    return rules


def is_kept(tile: NDArray, keep: str) -> bool:
    """Whether a tile (H, W, C) fulfills all rules, in the values of its file. std: of each channel, their mean."""
    return all(OPERATORS[sign](MEASURES[measure](tile), number) for measure, sign, number in rules_of(keep))


def starts(side: int, tiling: Tiling) -> list[int]:
    """Where tiles begin along a side of this many pixels; the last one ends with the side, so that all have one size.
    [] if the side is shorter than a tile."""
    if side < tiling.size:
        return []
    last = side - tiling.size
    return [*range(0, last, tiling.size - tiling.overlap), last]
