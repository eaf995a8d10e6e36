"""The time of a collective from the latency of its hops and the bytes on a link: the alpha-beta model (Hockney, 1994).

    T = call + hops (latency + work s) + moved bytes per_byte s

with the number of hops one after another, and how often a rank moves its bytes, over n ranks:

    all-reduce, ring    2 (n - 1) hops          2 (n - 1) / n      gloo; NCCL for long messages
    all-reduce, tree    2 ceil(log2 n) hops     2                  NCCL for short messages on many nodes
    all-gather, ring    n - 1 hops              n - 1

`latency` does not depend on the CPUs (such as the delay of a wire); `work` is CPU time. If more ranks than cores share
a machine, they wait for each other and work takes s = ranks / cores times as long; otherwise s = 1.

A single number is a special case in gloo's ring: most ranks have no segment of it, so fewer messages wait for each
other, and a hop takes the share `single` of its usual time.
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
    """The terms of a link, in seconds. call: of a collective on one rank. latency, work: of a hop. per_byte: of a byte.

    single: share of the time of a hop in an all-reduce of one number.
    """

    call: float
    latency: float
    work: float
    per_byte: float
    single: float = 1.0

    @property
    def alpha(self) -> float:
        """Seconds of a hop if every rank has its own core."""
        return self.latency + self.work


class Timed(NamedTuple):
    """A measured all-reduce of `bytes` over `ranks`, in seconds."""

    ranks: int
    bytes: int
    seconds: float


def sharing(ranks: int, cores: int) -> float:
    """The factor by which CPU work takes longer for `ranks` on `cores`."""
    return max(1.0, ranks / cores)


def hops(kind: str, ranks: int, algorithm: Algorithm = "ring") -> int:
    """The number of messages that wait for each other."""
    if kind == "all_gather":
        return ranks - 1
    return 2 * (ranks - 1) if algorithm == "ring" else 2 * ceil(log2(ranks))


def moved(kind: str, ranks: int, algorithm: Algorithm = "ring") -> float:
    """How often the bytes of a rank pass its link."""
    if kind == "all_gather":
        return ranks - 1
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks if algorithm == "ring" else 2.0


def seconds_of(
    link: Link, kind: str, bytes: int, ranks: int, cores: int | None = None, algorithm: Algorithm = "ring"
) -> float:
    """Seconds of a collective with `bytes` from each of `ranks`. cores: shared by the ranks; None: one core each."""
    factor = 1.0 if cores is None else sharing(ranks, cores)
    hop = (link.latency + link.work * factor) * (link.single if bytes <= ONE_NUMBER else 1.0)
    return (
        link.call + hops(kind, ranks, algorithm) * hop + moved(kind, ranks, algorithm) * bytes * link.per_byte * factor
    )


def fit(timed: Iterable[Timed], latency: float = 0.0, cores: int | None = None) -> Link:
    """The link that fits ring all-reduces with the least squares of relative errors.

    latency: the part of a hop in seconds that is known not to be CPU work. The time of one rank gives `call`. Raises
    ValueError if there is no all-reduce of more than one number over two ranks or more.
    """
    rows = list(timed)
    vectors = [row for row in rows if row.ranks > 1 and row.bytes > ONE_NUMBER]
    if not vectors:
        raise ValueError("a link needs all-reduces over two ranks or more")
    one_rank = [row.seconds for row in rows if row.ranks == 1]
    call = min(median(one_rank) if one_rank else 0.0, *(row.seconds for row in vectors))
    columns, targets = [], []
    for row in vectors:
        factor = 1.0 if cores is None else sharing(row.ranks, cores)
        count = hops("all_reduce", row.ranks)
        columns.append(
            [count * factor / row.seconds, moved("all_reduce", row.ranks) * row.bytes * factor / row.seconds]
        )
        targets.append((row.seconds - call - count * latency) / row.seconds)
    work, per_byte = _positive(np.array(columns), np.array(targets))
    link = Link(call, latency, work, per_byte)
    shares = []
    for row in rows:
        if row.ranks > 1 and row.bytes <= ONE_NUMBER:
            usual = seconds_of(link, "all_reduce", row.bytes, row.ranks, cores)
            shares.append((row.seconds - call) / (usual - call) if usual > call else 1.0)
    return replace(link, single=max(0.0, median(shares))) if shares else link


def _positive(columns: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Least squares for two unknowns that must not be below 0."""
    solution = np.linalg.lstsq(columns, targets, rcond=None)[0] if len(targets) > 1 else np.array([-1.0, 0.0])
    if solution.min() >= 0:
        return float(solution[0]), float(solution[1])
    solutions = []
    for index in (0, 1):
        column = columns[:, index]
        value = max(0.0, float(column @ targets / (column @ column))) if column.any() else 0.0
        solutions.append((float(((column * value - targets) ** 2).sum()), index, value))
    _, index, value = min(solutions)
    return (value, 0.0) if index == 0 else (0.0, value)


def error(predicted: float, measured: float) -> float:
    """The relative error: 0.1 if the prediction is a tenth too high."""
    return predicted / measured - 1.0
