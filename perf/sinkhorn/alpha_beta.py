"""What a collective costs: latency of its hops and bytes that pass a link, the alpha-beta model (Hockney, 1994).

    T = call + hops (latency + work s) + moved bytes per_byte s

hops one after another, and how often a rank moves its bytes, over n ranks:

    all-reduce, ring    2 (n - 1) hops          2 (n - 1) / n      gloo; NCCL for long messages
    all-reduce, tree    2 ceil(log2 n) hops     2                  NCCL for short messages on many nodes
    all-gather, ring    n - 1 hops              n - 1

`latency` passes whatever the CPUs do (a wire's delay), `work` is time of a CPU: where more ranks than cores share a
machine they wait for each other, s = ranks / cores times as long (1 otherwise).

A single number is a case of its own in gloo's ring: with no segment for most ranks fewer messages wait for each other,
and a hop takes the share `single` of what it takes otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, log2
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

Algorithm = Literal["ring", "tree"]
ONE_NUMBER = 8  # bytes at most


@dataclass(frozen=True)
class Link:
    """All in seconds. call: of a collective without anyone else. latency, work: of a hop. per_byte: of a byte.

    single: share of a hop that an all-reduce of one number takes.
    """

    call: float
    latency: float
    work: float
    per_byte: float
    single: float = 1.0

    @property
    def alpha(self) -> float:
        """Seconds a hop takes where every rank has a core."""
        return self.latency + self.work


class Timed(NamedTuple):
    """A measured all-reduce of `bytes` over `ranks`, in seconds."""

    ranks: int
    bytes: int
    seconds: float


def sharing(ranks: int, cores: int) -> float:
    """How much longer CPUs' work takes for `ranks` of them on `cores`."""
    return max(1.0, ranks / cores)


def hops(kind: str, ranks: int, algorithm: Algorithm = "ring") -> int:
    """Messages that wait for each other."""
    if kind == "all_gather":
        return ranks - 1
    return 2 * (ranks - 1) if algorithm == "ring" else 2 * ceil(log2(ranks))


def moved(kind: str, ranks: int, algorithm: Algorithm = "ring") -> float:
    """How often a rank's bytes pass its link."""
    if kind == "all_gather":
        return ranks - 1
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks if algorithm == "ring" else 2.0


def seconds_of(
    link: Link, kind: str, bytes: int, ranks: int, cores: int | None = None, algorithm: Algorithm = "ring"
) -> float:
    """A collective of `bytes` from each of `ranks`. cores: what they share; None where each has its own."""
    slower = 1.0 if cores is None else sharing(ranks, cores)
    hop = (link.latency + link.work * slower) * (link.single if bytes <= ONE_NUMBER else 1.0)
    return (
        link.call + hops(kind, ranks, algorithm) * hop + moved(kind, ranks, algorithm) * bytes * link.per_byte * slower
    )


def fit(timed: Iterable[Timed], latency: float = 0.0, cores: int | None = None) -> Link:
    """The link that fits all-reduces in a ring best, by the squares of relative errors.

    latency: of a hop, as far as it is known not to be a CPU's work. The call is what one rank takes by itself. Raises
    ValueError if nothing but single numbers was measured over two ranks or more.
    """
    rows = list(timed)
    several = [row for row in rows if row.ranks > 1 and row.bytes > ONE_NUMBER]
    if not several:
        raise ValueError("a link needs all-reduces over two ranks or more")
    alone = [row.seconds for row in rows if row.ranks == 1]
    call = min(median(alone) if alone else 0.0, *(row.seconds for row in several))
    columns, rests = [], []
    for row in several:
        slower = 1.0 if cores is None else sharing(row.ranks, cores)
        count = hops("all_reduce", row.ranks)
        columns.append(
            [count * slower / row.seconds, moved("all_reduce", row.ranks) * row.bytes * slower / row.seconds]
        )
        rests.append((row.seconds - call - count * latency) / row.seconds)
    work, per_byte = _positive(np.array(columns), np.array(rests))
    vector = Link(call, latency, work, per_byte)
    shares = []
    for row in rows:
        if row.ranks > 1 and row.bytes <= ONE_NUMBER:
            whole = seconds_of(vector, "all_reduce", row.bytes, row.ranks, cores)
            shares.append((row.seconds - call) / (whole - call) if whole > call else 1.0)
    return replace(vector, single=max(0.0, median(shares))) if shares else vector


def _positive(columns: np.ndarray, rests: np.ndarray) -> tuple[float, float]:
    """Least squares for two unknowns, neither below 0."""
    both = np.linalg.lstsq(columns, rests, rcond=None)[0] if len(rests) > 1 else np.array([-1.0, 0.0])
    if both.min() >= 0:
        return float(both[0]), float(both[1])
    found = []
    for which in (0, 1):
        column = columns[:, which]
        value = max(0.0, float(column @ rests / (column @ column))) if column.any() else 0.0
        found.append((float(((column * value - rests) ** 2).sum()), which, value))
    _, which, value = min(found)
    return (value, 0.0) if which == 0 else (0.0, value)


def error(predicted: float, measured: float) -> float:
    """Relative: 0.1 where the prediction is a tenth too high."""
    return predicted / measured - 1.0
