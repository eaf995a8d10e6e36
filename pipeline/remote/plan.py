"""The order of training as a cache sees it: when a row is needed again on this node."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.remote.records import NEVER


class Step(NamedTuple):
    """This rank's rows of a step, (n,) int64. samples: rows of the epoch that all ranks have used after it."""

    epoch: int
    samples: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """order: the permutation of an epoch, (m,) int64, of which each rank takes its part of each global batch."""

    order: Callable[[int], NDArray[np.int64]]
    global_batch: int
    rank: int
    world_size: int


def place_on_node() -> tuple[int, int]:
    """This process's rank on its node, and the number of ranks there."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class NextUses:
    """When rows of a table with `rows` rows are used on this node. A use is a number, `epoch * m + place in the
    permutation`; NEVER where another node has the row, or no node, as it is in the incomplete last batch."""

    def __init__(self, plan: Plan, rows: int) -> None:
        self._plan, self._rows = plan, rows
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._uses: dict[int, NDArray[np.int64]] = {}
        local = plan.global_batch // plan.world_size
        rank, ranks = place_on_node()
        first = max(0, plan.rank - rank)
        self._part = slice(first * local, min(first + ranks, plan.world_size) * local)  # of each global batch

    def node_rows(self, step: Step) -> NDArray[np.int64]:
        """The rows of a step on all ranks of this node."""
        batch = self._order(step.epoch)[step.samples - self._plan.global_batch : step.samples]
        return batch[self._part]

    def before(self, step: Step) -> NDArray[np.int64]:
        """The next use of every row, (rows,) int64, before a step."""
        uses = self.in_epoch(step.epoch)
        now = step.epoch * len(self._order(step.epoch)) + step.samples - self._plan.global_batch
        return np.where(uses >= now, uses, self.in_epoch(step.epoch + 1))

    def in_epoch(self, epoch: int) -> NDArray[np.int64]:
        """The use of every row in an epoch, (rows,) int64."""
        if epoch not in self._uses:
            order = self._order(epoch)
            whole = len(order) // self._plan.global_batch * self._plan.global_batch
            places = np.arange(whole).reshape(-1, self._plan.global_batch)[:, self._part].ravel()
            uses = np.full(self._rows, NEVER, np.int64)
            uses[order[places]] = epoch * len(order) + places
            self._uses[epoch] = uses
            self._uses = {known: self._uses[known] for known in sorted(self._uses)[-2:]}
        return self._uses[epoch]

    def last_kept(self, epoch: int, lengths: NDArray[np.int64], most: int) -> int:
        """The use in an epoch up to which this node's rows have `most` bytes: Belady's rule keeps these from the epoch
        before, and what is used later would go out again. lengths: (rows,) bytes of every row."""
        order, batch = self._order(epoch), self._plan.global_batch
        for first in range(0, len(order) // batch * batch, batch):
            most -= int(lengths[order[first : first + batch][self._part]].sum())
            if most < 0:
                return epoch * len(order) + first + batch
        return NEVER

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders[epoch] = self._plan.order(epoch)
            self._orders = {known: self._orders[known] for known in sorted(self._orders)[-3:]}
        return self._orders[epoch]
