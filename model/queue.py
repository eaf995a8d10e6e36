"""Recent embeddings that enlarge the batch when codes are computed (SwAV, section 3.1)."""

import torch
from jaxtyping import Float
from torch import Tensor

from model.state import RankTensors


class EmbeddingQueue:
    """The last `length` embeddings of each assigning crop, newest first; every rank holds its share.

    assigning: how many crops assign codes (2 in the paper).
    length: rows over all ranks (3840 in the paper); each rank holds length / world_size.
    dim: size of an embedding.
    global_batch: samples a step over all ranks.

    `embeddings` [assigning, local_length, dim] starts as zeros and is not used before it is full.

    Raises ValueError if `length` is shorter than `global_batch` (the published code then silently trains without a
    queue) or not divisible by `world_size`.
    """

    def __init__(
        self,
        assigning: int,
        length: int,
        dim: int,
        *,
        global_batch: int,
        world_size: int = 1,
        device: "torch.device | str | None" = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if length < global_batch:
            raise ValueError(f"queue length {length} is shorter than the global batch {global_batch}")
        if length % world_size:
            raise ValueError(f"queue length {length} is not divisible by the number of ranks {world_size}")
        self.embeddings = torch.zeros(assigning, length // world_size, dim, device=device, dtype=dtype)
        # Counted on the host: reading it from the tensor would make the host wait for the device.
        self._filled = 0

    @property
    def full(self) -> bool:
        """Whether the last row holds an embedding; once true, it stays true."""
        return self._filled >= self.embeddings.shape[1]

    def queued(self) -> Float[Tensor, "assigning length dim"] | None:
        """The queued embeddings, or None while the queue is not full."""
        return self.embeddings if self.full else None

    @torch.no_grad()
    def push(self, embeddings: Float[Tensor, "assigning batch dim"]) -> None:
        """Puts this rank's batch in front, without gradient, and drops the same number of oldest rows."""
        batch, length = embeddings.shape[1], self.embeddings.shape[1]
        if batch > length:
            raise ValueError(f"a batch of {batch} does not fit into a queue of {length} rows on this rank")
        # A new tensor, not a shift in place: source and target rows would overlap.
        staying = self.embeddings[:, : length - batch]
        self.embeddings = torch.cat([embeddings.detach().to(staying), staying], dim=1)
        self._filled = min(self._filled + batch, length)

    def state_tensors(self) -> dict[str, Tensor]:
        """This rank's rows, {"own/queue": [assigning, local_length, dim]}: all that a checkpoint must keep."""
        return {"own/queue": self.embeddings}

    def load_state_tensors(self, saved: RankTensors, rank: int = 0, world_size: int = 1) -> None:
        """Takes over the rows of a saved queue of the same length; zeros at the end count as not yet filled.

        Another number of ranks gets the same rows, dealt out so that each rank again holds its rows newest first.
        Raises ValueError for a queue of another shape, KeyError where no queue was saved.
        """
        rows = _rows_of_rank([tensors["own/queue"] for tensors in saved], rank, world_size)
        if rows.shape != self.embeddings.shape:
            raise ValueError(
                f"saved queue has shape {tuple(rows.shape)}, this one {tuple(self.embeddings.shape)} "
                "(assigning crops, rows on this rank, embedding size)"
            )
        self.embeddings = rows.to(self.embeddings, copy=True)
        used = self.embeddings.ne(0).any(dim=2).any(dim=0).nonzero()
        self._filled = int(used[-1]) + 1 if len(used) else 0


def _rows_of_rank(
    saved: list[Float[Tensor, "assigning saved_length dim"]], rank: int, world_size: int
) -> Float[Tensor, "assigning local_length dim"]:
    """The rows that rank `rank` of `world_size` takes over from the ranks that saved."""
    if len(saved) == world_size:
        return saved[rank]
    # Newest first within each saved rank, so the ranks' rows are interleaved before they are dealt out again.
    return torch.stack(saved, dim=2).flatten(1, 2)[:, rank::world_size].contiguous()
