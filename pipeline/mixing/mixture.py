"""How often each image comes in an epoch: data.weights and data.balance.

An epoch has as many images as the dataset. They are shared among cells, a class of a source each; a cell's quota is a
whole number. Within a cell each image comes equally often, but for the rest of the division, which other images get in
each epoch. So an image of a cell of n images with quota k comes floor(k / n) or ceil(k / n) times in every epoch, and
k / n times on average. All is a function of seed and epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from pipeline.crops import Crops
from pipeline.dataset.table import DatasetError, SampleTable
from pipeline.draw import Draw, draw
from pipeline.remote.probes import mirror_without_images

REPEAT = 40  # bits of a row's number; above them, in the order of an epoch, which of its repeats it is
ROW = (1 << REPEAT) - 1


@dataclass(frozen=True)
class Mixture:
    """rows: the usable ones; cell: the number of each one's cell; quota: images of an epoch from each cell."""

    rows: Int[np.ndarray, " n"]
    cell: Int[np.ndarray, " n"]
    quota: Int[np.ndarray, " cells"]

    def epoch(self, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
        """The rows of an epoch, not in its order: n int64, of which repeats have their number from bit REPEAT on."""
        key = np.array([seed, epoch], dtype=np.uint64)
        chance = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 1])).random(len(self.rows))
        mixed = np.lexsort((chance, self.cell))  # cell by cell, in random order within each
        cell, size = self.cell[mixed], np.bincount(self.cell, minlength=len(self.quota))
        place = np.arange(len(mixed)) - (np.cumsum(size) - size)[cell]
        each, rest = np.divmod(self.quota, np.maximum(size, 1))
        times = each[cell] + (place < rest[cell])
        first = np.cumsum(times) - times
        repeat = np.arange(times.sum()) - np.repeat(first, times)
        return np.repeat(self.rows[mixed].astype(np.int64), times) | repeat << REPEAT

    def lines(self, table: SampleTable) -> list[str]:
        """What an epoch has of each source."""
        source = source_of(table, self.rows)
        share = self.quota / np.maximum(np.bincount(self.cell, minlength=len(self.quota)), 1)
        found = []
        for number, (path, _) in enumerate(table.sources or (("data.path", len(table)),)):
            times = share[self.cell[source == number]]
            counts = f"{times.min():.3g} to {times.max():.3g}" if len(times) and np.ptp(times) > 1e-9 else ""
            counts = counts or f"{times.mean() if len(times) else 0:.3g}"
            found.append(f"{path}: {len(times):,} images, {times.sum():,.0f} in an epoch, each {counts} times")
        return found


def mixture_of(table: SampleTable, weights: Sequence[float] | None, balance: str) -> Mixture | None:
    """The mixture of a recipe's data.weights and data.balance; None where each image comes once. Raises DatasetError,
    one line."""
    if weights is None and balance == "none":
        return None
    if mirror_without_images(table.root) is not None:
        problem = "the images are fetched one by one, each once an epoch"
        advice = "raise data.cache_bytes, so that all are on this machine"
        raise DatasetError(f"data.balance={balance}: {problem}; {advice}")
    rows = table.usable()
    label = table.label[rows].astype(np.int64)
    if balance != "none" and (label < 0).any():
        problem = f"{(label < 0).sum():,} of {len(rows):,} images have no class"
        raise DatasetError(f"data.balance={balance}: {problem}; give folders by class, or data.balance=none")
    power = 1.0 if balance == "none" else 0.0 if balance == "class" else float(balance.partition(":")[2])
    source = np.zeros_like(label) if weights is None else source_of(table, rows)
    cells, quota = quotas_of(source, label if balance != "none" else np.zeros_like(label), weights or [1.0], power)
    return Mixture(rows, cells, quota)


def source_of(table: SampleTable, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The number of the source of each row."""
    return np.searchsorted(np.cumsum([count for _, count in table.sources]), rows, side="right")


def quotas_of(
    source: Int[np.ndarray, " n"], label: Int[np.ndarray, " n"], weights: Sequence[float], power: float
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " cells"]]:
    """The cell of each image, and each cell's quota of an epoch of n images.

    First the sources share the epoch by their weights, then the classes of a source its part, in proportion to (number
    of images) ** power. Sources without images leave theirs to the others.
    """
    cells, cell, count = np.unique(np.stack([source, label]), axis=1, return_inverse=True, return_counts=True)
    used, quota = np.unique(cells[0]), np.zeros(len(count), np.int64)
    for number, total in zip(used, quotas(np.asarray(weights, float)[used], len(source)), strict=True):
        own = cells[0] == number
        quota[own] = quotas(count[own].astype(float) ** power, total)
    return cell.reshape(-1), quota


def quotas(share: Float[np.ndarray, " cells"], total: int) -> Int[np.ndarray, " cells"]:
    """Whole numbers with the sum `total`, in proportion to `share`, each less than one off: those with the largest rest
    get what rounding down leaves."""
    exact = share / share.sum() * total
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: total - quota.sum()]] += 1
    return quota


def draw_repeats(
    crops: Crops,
    seed: int,
    epoch: int,
    repeat: Int[np.ndarray, " B"],
    rows: Int[np.ndarray, " B"],
    height: np.ndarray,
    width: np.ndarray,
) -> Draw:
    """As `pipeline.draw.draw`, with another draw for each repeat of a row; the first one's is that of the row."""
    return replace(draw(crops, seed, epoch, rows | repeat << REPEAT, height, width), rows=rows)
