"""The order of training: one permutation of the rows per epoch, cut into global batches and ranks.

Everything here is a pure function of (seed, epoch, position): backend, thread count and world size have no
influence, and a run resumes exactly from two integers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np


@dataclass
class Position:
    """The point that training has reached: `epoch` (from 0) and `samples`, the rows of it that all ranks have used."""

    epoch: int = 0
    samples: int = 0

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.samples = int(state["epoch"]), int(state["samples"])


def order(seed: int, epoch: int, rows: np.ndarray, neighbors: int = 1) -> np.ndarray:
    """The permutation of `rows` (integers, shape (n,)) for one epoch, in their dtype; the same on every rank.

    The dtype does not change it. Philox is keyed by (seed, epoch): epochs are independent, and epoch e needs no earlier
    one. neighbors: so many rows that follow each other stay together, in blocks that begin elsewhere in each epoch.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    if neighbors == 1:
        return generator.permutation(rows)
    first = int(generator.integers(neighbors))  # rows before the first whole block
    starts = generator.permutation(np.arange(first - neighbors, len(rows), neighbors))
    places = (starts[:, None] + np.arange(neighbors)).ravel()
    return rows[places[(places >= 0) & (places < len(rows))]]


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Whole global batches in an epoch; the incomplete last one is dropped."""
    return samples // global_batch


def rank_rows(permutation: np.ndarray, samples: int, global_batch: int, rank: int, world_size: int) -> np.ndarray:
    """The rows, (global_batch / world_size,) int64, of `rank` in the global batch that starts after `samples` rows.

    Ranks take contiguous parts of the global batch, so it is the same for any world size. Raises ValueError if it does
    not split evenly.
    """
    if global_batch % world_size:
        raise ValueError(f"a global batch of {global_batch} cannot be split evenly over {world_size} ranks")
    local = global_batch // world_size
    start = samples + rank * local
    return permutation[start : start + local].astype(np.int64)
