"""The classes of rows by their nearest rows, as weighted votes (Wu et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from common.progress import counted, progress_bar

BLOCK = 65_536  # rows of the bank: 268 MB of similarities to 1,024 queries


def predict(
    bank: Float[Tensor, "train features"],
    bank_labels: Int[Tensor, " train"],
    queries: Float[Tensor, "test features"],
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Int[Tensor, " test"]:
    """The class of each query by the weighted votes of its k nearest rows of the bank. Rows have unit length; those of
    the bank may be in half precision."""
    return predict_each(bank, bank_labels, queries, [k], temperature, chunk)[0]


def predict_each(
    bank: Float[Tensor, "train features"],
    bank_labels: Int[Tensor, " train"],
    queries: Float[Tensor, "test features"],
    neighbors: Sequence[int],
    temperature: float = 0.07,
    chunk: int = 1024,
) -> list[Int[Tensor, " test"]]:
    """`predict` for several k with one search; each k uses the first k neighbors."""
    counts = [min(k, len(bank)) for k in neighbors]
    predictions: list[list[Tensor]] = [[] for _ in counts]
    with progress_bar(len(queries), "k-NN: search", "img", not dist.is_initialized() or dist.get_rank() == 0) as bar:
        for part in counted(queries.split(chunk), bar):
            similarity, nearest = nearest_rows(bank, part, max(counts))
            # relative to the nearest, in float64: so any temperature above 0 is within the range of numbers
            weights = ((similarity.double() - similarity[:, :1]) / temperature).exp()
            voters = bank_labels[nearest]
            for k, classified in zip(counts, predictions, strict=True):
                classified.append(_elected(voters[:, :k], weights[:, :k]))
    return [torch.cat(parts) for parts in predictions]


def nearest_rows(
    bank: Float[Tensor, "train features"], queries: Float[Tensor, "test features"], k: int, block: int = BLOCK
) -> tuple[Float[Tensor, "test k"], Int[Tensor, "test k"]]:
    """Similarities to the k nearest rows of the bank, the nearest first, and their numbers.

    block: rows of the bank whose similarities are in memory at once, in the queries' precision.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(bank), block):
        part = bank[start : start + block].to(queries.dtype)
        similarity, rows = (queries @ part.T).topk(min(k, len(part)))
        found.append((similarity, rows + start))
        if len(found) == 2:
            similarity, rows = (torch.cat(both, dim=1) for both in zip(*found, strict=True))
            similarity, order = similarity.topk(min(k, similarity.shape[1]))
            found = [(similarity, rows.gather(1, order))]
    return found[0]


def _elected(voters: Int[Tensor, "test k"], weights: Float[Tensor, "test k"]) -> Int[Tensor, " test"]:
    """The label with the largest sum of weights in each row; of equals the lowest. Labels are any numbers: the memory
    that this takes does not depend on them."""
    sorted_voters, order = voters.sort(dim=1, stable=True)
    place = torch.zeros_like(order)  # of each voter's label among the row's different labels
    place[:, 1:] = (sorted_voters[:, 1:] != sorted_voters[:, :-1]).cumsum(1)
    votes = torch.zeros_like(weights).scatter_add_(1, place, weights.gather(1, order))
    labels = torch.zeros_like(voters).scatter_(1, place, sorted_voters)
    return labels.gather(1, votes.argmax(1, keepdim=True))[:, 0]
