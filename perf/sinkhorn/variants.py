"""Three ways to compute the same codes of a global batch, and the messages that each sends in a step.

published   crop by crop, as in the published algorithm: a sum over the whole plan, then one sum over the samples in
            each iteration; with two crops and three iterations 8 all-reduces
ours        model/sinkhorn.py: both crops at once, without the sum that cancels: 3 all-reduces
gather      one all-gather of all scores, then all computation on every rank: it grows with the ranks
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch.distributed as dist
from torch import Tensor

from model.sinkhorn import sinkhorn
from perf.sinkhorn.textbook import textbook_codes

Kind = Literal["all_reduce", "all_gather"]
Group = "dist.ProcessGroup"
EPSILON = 0.05


class Message(NamedTuple):
    """A collective: its kind, and the bytes of each rank."""

    kind: Kind
    bytes: int


class Point(NamedTuple):
    """A case of codes: a variant, `crops` x `batch` samples a rank, and numbers of prototypes and iterations."""

    variant: str
    prototypes: int
    batch: int
    iterations: int
    crops: int = 2


def sent(point: Point) -> list[Message]:
    """The collectives of a step, in order."""
    crops, row = point.crops, 4 * point.prototypes
    match point.variant:
        case "published":
            return crops * [Message("all_reduce", 4), *point.iterations * [Message("all_reduce", row)]]
        case "ours":
            return point.iterations * [Message("all_reduce", crops * row)]
        case "gather":
            return [Message("all_gather", crops * point.batch * row)]
    raise ValueError(f"{point.variant!r} is not one of {', '.join(VARIANTS)}")


def worked_on(point: Point, ranks: int) -> int:
    """Bytes of the arrays in which a rank computes codes: scores, their exponentials, the codes (float32)."""
    rows = point.crops * point.batch * (ranks if point.variant == "gather" else 1)
    return 3 * 4 * rows * point.prototypes


def published(scores: Tensor, iterations: int, group: dist.ProcessGroup, alone: dist.ProcessGroup) -> Tensor:
    """Float32 codes [crops, batch, prototypes] of scores with this shape. group: ranks of the global batch."""
    return textbook_codes(scores, EPSILON, iterations, group)


def ours(scores: Tensor, iterations: int, group: dist.ProcessGroup, alone: dist.ProcessGroup) -> Tensor:
    """As `published`."""
    return sinkhorn(scores, EPSILON, iterations, group=group, check=False)


def gather(scores: Tensor, iterations: int, group: dist.ProcessGroup, alone: dist.ProcessGroup) -> Tensor:
    """As `published`. alone: a group of this rank only, for sums without communication."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    crops, batch, prototypes = scores.shape
    everyone = scores.new_empty(ranks * crops, batch, prototypes)
    dist.all_gather_into_tensor(everyone, scores, group=group)
    rows = everyone.view(ranks, crops, batch, prototypes).transpose(0, 1).reshape(crops, ranks * batch, prototypes)
    codes = sinkhorn(rows, EPSILON, iterations, group=alone, check=False)
    return codes[:, rank * batch : (rank + 1) * batch]


VARIANTS: dict[str, Callable[[Tensor, int, dist.ProcessGroup, dist.ProcessGroup], Tensor]] = {
    "published": published,
    "ours": ours,
    "gather": gather,
}
