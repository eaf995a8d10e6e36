"""Spherical k-means over the samples of all ranks (as DeepCluster-v2 does it: SwAV, appendix)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from model.optimizer.segments import unit_rows_

CHUNK = 16_384  # samples whose similarities with all centroids are held at a time: 197 MB for 3,000 centroids


@torch.no_grad()
def first_centroids(
    rows: Int[Tensor, " samples"],
    embeddings: Float[Tensor, "samples dim"],
    count: int,
    images: int,
    seed: Sequence[int],
) -> Float[Tensor, "count dim"]:
    """Embeddings of `count` random samples, alike on all ranks: the choice is one of rows, wherever they lie.

    rows: this rank's samples, numbers below `images`; no row is on two ranks. seed: what the choice depends on.
    Raises ValueError on all ranks alike if there are fewer samples than `count` over all ranks.
    """
    place = torch.full((images,), -1, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    there = _over_ranks((place >= 0).int()).nonzero()[:, 0].cpu().numpy()
    if len(there) < count:
        raise ValueError(f"{count} centroids need as many samples, there are {len(there)}: lower model.prototypes")
    picked = np.random.default_rng(list(seed)).choice(there, count, replace=False)
    at = place[torch.as_tensor(picked, device=rows.device)]
    found = embeddings.new_zeros(count, embeddings.shape[1])
    found[at >= 0] = embeddings[at[at >= 0]]
    return _over_ranks(found)


@torch.no_grad()
def spherical_kmeans(
    embeddings: Float[Tensor, "samples dim"], centroids: Float[Tensor, "count dim"], iterations: int = 10
) -> tuple[Int[Tensor, " samples"], Float[Tensor, "count dim"]]:
    """The nearest centroid of each of this rank's samples, and the centroids, after `iterations` of Lloyd's algorithm.

    embeddings: this rank's samples, of unit length; ranks may have different numbers of them.
    centroids: where it starts, of unit length, alike on all ranks.

    Nearest by dot product. A centroid is its samples' sum over all ranks at unit length; one without samples stays
    where it is. The last assignment is to the last centroids. Sums are float64, so that the number of ranks hardly
    changes them. An iteration costs one all-reduce of count x (dim + 1) numbers.
    """
    assigned = _nearest(embeddings, centroids)
    for _ in range(iterations):
        sums = embeddings.new_zeros(len(centroids), embeddings.shape[1] + 1, dtype=torch.float64)
        sums[:, :-1].index_add_(0, assigned, embeddings.double())
        sums[:, -1] = torch.bincount(assigned, minlength=len(centroids))
        _over_ranks(sums)
        means = sums[:, :-1].clone()
        unit_rows_(means)
        centroids = torch.where(sums[:, -1:] > 0, means.to(centroids), centroids)
        assigned = _nearest(embeddings, centroids)
    return assigned, centroids


def _nearest(embeddings: Tensor, centroids: Tensor) -> Tensor:
    return torch.cat([(part @ centroids.T).argmax(1) for part in embeddings.split(CHUNK)])


def _over_ranks(values: Tensor) -> Tensor:
    """Sums over the ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
