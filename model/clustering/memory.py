"""The embeddings of an epoch, which DeepCluster-v2 and SeLa-v2 cluster before the next one (SwAV, section 4.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.state import RankTensors


class Memory:
    """Sample rows and embeddings of the current epoch on this rank; the next epoch starts with an empty memory.

    crops: how many crops of a sample assign codes; their embeddings are stored.
    capacity: samples of an epoch on this rank.
    dim: size of an embedding.

    A sample may be on another rank in each epoch; no result depends on this.
    """

    def __init__(self, crops: int, capacity: int, dim: int, device: torch.device | str = "cpu") -> None:
        self._rows = torch.full((capacity,), -1, dtype=torch.int64, device=device)
        self._embeddings = torch.zeros(crops, capacity, dim, device=device)
        self.filled = 0

    @property
    def rows(self) -> Int[Tensor, " samples"]:
        """Sample rows stored so far, int64."""
        return self._rows[: self.filled]

    @property
    def embeddings(self) -> Float[Tensor, "crops samples dim"]:
        """Their embeddings, float32, of unit length."""
        return self._embeddings[:, : self.filled]

    @property
    def room(self) -> int:
        """How many more samples fit."""
        return len(self._rows) - self.filled

    @torch.no_grad()
    def add(self, rows: Int[Tensor, " batch"], embeddings: Float[Tensor, "crops batch dim"]) -> None:
        """Stores the samples of a step. Raises ValueError if they do not fit."""
        end = self.filled + len(rows)
        if end > len(self._rows):
            raise ValueError(f"{end} samples do not fit into a memory of {len(self._rows)}")
        self._rows[self.filled : end] = rows.to(self._rows, non_blocking=True)
        self._embeddings[:, self.filled : end] = embeddings.detach()
        self.filled = end

    def clear(self) -> None:
        self.filled = 0

    def state_tensors(self) -> dict[str, Tensor]:
        """This rank's samples: {"own/memory.rows": [samples], "own/memory.embeddings": [crops, samples, dim]}."""
        return {"own/memory.rows": self.rows, "own/memory.embeddings": self.embeddings}

    def load_state_tensors(self, saved: RankTensors, rank: int = 0, world_size: int = 1) -> None:
        """Continue from saved samples. On another number of ranks W, rank r takes samples r, r + W, r + 2W, ...

        Raises KeyError if no memory was saved, ValueError if the samples do not fit.
        """
        same_ranks = len(saved) == world_size
        sources = [saved[rank]] if same_ranks else saved
        rows = torch.cat([tensors["own/memory.rows"] for tensors in sources])
        embeddings = torch.cat([tensors["own/memory.embeddings"] for tensors in sources], dim=1)
        if not same_ranks:
            rows, embeddings = rows[rank::world_size], embeddings[:, rank::world_size]
        self.clear()
        self.add(rows, embeddings.to(self._embeddings))
