"""The targets of DeepCluster-v2 and SeLa-v2: a cluster for every image of the dataset, fixed for an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.clustering.memory import Memory
from model.state import RankTensors


@dataclass
class EpochTargets:
    """memory: this rank's embeddings of the current epoch, from which the next epoch's targets are computed.
    targets: the cluster of each row of the sample table in the current epoch by each head, int64, the same on all
    ranks; IGNORED (model/clustering/deepcluster.py) for a row without a cluster."""

    memory: Memory
    targets: Int[Tensor, "heads images"]

    def targets_of(
        self, rows: Int[np.ndarray, " batch"], embeddings: Float[Tensor, "crops batch dim"]
    ) -> Int[Tensor, "heads batch"]:
        """The clusters of a step's rows in this epoch. Stores the embeddings for the next epoch's targets."""
        here = torch.from_numpy(rows).to(self.targets.device, non_blocking=True)
        self.memory.add(here, embeddings)
        return self.targets[:, here]

    def state_tensors(self) -> dict[str, Tensor]:
        """The memory's tensors, and {"alike/targets": [heads, images]} as int32."""
        return self.memory.state_tensors() | {"alike/targets": self.targets.int()}

    def load_state_tensors(self, saved: RankTensors, rank: int = 0, world_size: int = 1) -> None:
        """Continues from tensors of any number of ranks. Raises KeyError if they hold no memory or no targets."""
        self.memory.load_state_tensors(saved, rank, world_size)
        # Older checkpoints (tests/training/checkpoint/old_checkpoints) hold the targets as rank 0's own tensor.
        name = "alike/targets" if "alike/targets" in saved[0] else "own/targets"
        self.targets.copy_(saved[0][name])
