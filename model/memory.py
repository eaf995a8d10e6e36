"""What the clustering methods keep of an epoch: each sample's row and its assigning crops' embeddings."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Memory:
    """This rank's samples of the present epoch; at its end they are clustered and the memory starts anew.

    crops: assigning crops, whose embeddings are kept. capacity: samples of an epoch on this rank. dim: size of an
    embedding. On which rank a row lies changes from epoch to epoch, and nothing depends on it.
    """

    def __init__(self, crops: int, capacity: int, dim: int, device: torch.device | str = "cpu") -> None:
        self._rows = torch.full((capacity,), -1, dtype=torch.int64, device=device)
        self._embeddings = torch.zeros(crops, capacity, dim, device=device)
        self.filled = 0

    @property
    def rows(self) -> Int[Tensor, " samples"]:
        """Sample rows kept so far."""
        return self._rows[: self.filled]

    @property
    def embeddings(self) -> Float[Tensor, "crops samples dim"]:
        """Their embeddings, float32, L2-normalised as they came."""
        return self._embeddings[:, : self.filled]

    @property
    def room(self) -> int:
        """How many more samples fit."""
        return len(self._rows) - self.filled

    @torch.no_grad()
    def add(self, rows: Int[Tensor, " batch"], embeddings: Float[Tensor, "crops batch dim"]) -> None:
        """Takes in a step's samples. Raises ValueError where they do not fit."""
        end = self.filled + len(rows)
        if end > len(self._rows):
            raise ValueError(f"{end} samples do not fit into a memory of {len(self._rows)}")
        self._rows[self.filled : end] = rows.to(self._rows, non_blocking=True)
        self._embeddings[:, self.filled : end] = embeddings.detach()
        self.filled = end

    def clear(self) -> None:
        self.filled = 0

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's samples: {"rows": [samples], "embeddings": [crops, samples, dim]}."""
        return {"rows": self.rows, "embeddings": self.embeddings}

    def load_state_dicts(self, saved: list[dict[str, Tensor]], rank: int = 0, world_size: int = 1) -> None:
        """Goes on from what all ranks of a run saved; another number of ranks shares the samples out anew."""
        self.clear()
        if len(saved) == world_size:
            self.add(saved[rank]["rows"], saved[rank]["embeddings"].to(self._embeddings))
            return
        rows = torch.cat([part["rows"] for part in saved])
        embeddings = torch.cat([part["embeddings"] for part in saved], dim=1)
        self.add(rows[rank::world_size], embeddings[:, rank::world_size].to(self._embeddings))
