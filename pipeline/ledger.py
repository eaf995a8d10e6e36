"""The account of drawn rows, which shows that an epoch has had each of its rows once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.columns import blocks

AddUp = Callable[[list[int]], list[int]]  # integers of this rank -> their sums over all ranks


@dataclass
class Ledger:
    """Count of drawn rows and the sum of their fingerprints. Ledgers of ranks and restarts add up."""

    count: int = 0
    checksum: int = 0

    def enter(self, rows: np.ndarray) -> None:
        """Add `rows` (integers). A row drawn twice instead of another changes the checksum."""
        for part in blocks(len(rows)):
            x = rows[part].astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # splitmix64's finalizer
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
            self.count += len(x)
            self.checksum = (self.checksum + int(x.sum(dtype=np.uint64))) % 2**64

    def total(self, add_up: AddUp) -> Ledger:
        """The sum of all ranks' ledgers."""
        count, low, high = add_up([self.count, self.checksum & 0xFFFFFFFF, self.checksum >> 32])
        return Ledger(count, (low + (high << 32)) % 2**64)
