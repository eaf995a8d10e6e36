"""Spherical k-means over the samples of all ranks, as in DeepCluster-v2 (SwAV, appendix)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from model.optimizer.segments import unit_rows_

CHUNK = 16_384  # samples per matrix of similarities with all centroids: 197 MB for 3,000 centroids


@torch.no_grad()
def first_centroids(
    rows: Int[Tensor, " samples"],
    embeddings: Float[Tensor, "samples dim"],
    count: int,
    images: int,
    seed: Sequence[int],
) -> Float[Tensor, "count dim"]:
    """Embeddings of `count` random samples, equal on all ranks: rows are drawn, so their rank does not matter.

    rows: this rank's samples, numbers below `images`; no row is on two ranks. seed: of the draw. Raises ValueError on
    all ranks if all ranks together have fewer than `count` samples.
    """
    position = torch.full((images,), -1, dtype=torch.int64, device=rows.device)  # of each row in `embeddings`
    position[rows] = torch.arange(len(rows), device=rows.device)
    all_rows = _sum_over_ranks((position >= 0).int()).nonzero()[:, 0].cpu().numpy()
    if len(all_rows) < count:
        raise ValueError(f"{count} centroids need as many samples, there are {len(all_rows)}: lower model.prototypes")
    drawn = np.random.default_rng(list(seed)).choice(all_rows, count, replace=False)
    positions = position[torch.as_tensor(drawn, device=rows.device)]
    own = positions >= 0
    centroids = embeddings.new_zeros(count, embeddings.shape[1])
    centroids[own] = embeddings[positions[own]]
    return _sum_over_ranks(centroids)


@torch.no_grad()
def spherical_kmeans(
    embeddings: Float[Tensor, "samples dim"],
    centroids: Float[Tensor, "count dim"],
    iterations: int = 10,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Int[Tensor, " samples"], Float[Tensor, "count dim"]]:
    """The nearest centroid of each of this rank's samples, and the centroids, after `iterations` of Lloyd's algorithm.

    embeddings: this rank's samples, of unit length; ranks may have different numbers of them.
    centroids: the first ones, of unit length, equal on all ranks.
    tick: called after each iteration.

    Nearest means the largest dot product. A centroid is the sum of its samples over all ranks, scaled to unit length; a
    centroid without samples does not change. The returned assignment is to the returned centroids. Sums are float64, so
    that the number of ranks hardly changes them. An iteration costs one all-reduce of count x (dim + 1) numbers.
    """
    clusters = _nearest(embeddings, centroids)
    for _ in range(iterations):
        sums = embeddings.new_zeros(len(centroids), embeddings.shape[1] + 1, dtype=torch.float64)
        sums[:, :-1].index_add_(0, clusters, embeddings.double())
        sums[:, -1] = torch.bincount(clusters, minlength=len(centroids))
        _sum_over_ranks(sums)
        means = sums[:, :-1].clone()
        unit_rows_(means)
        centroids = torch.where(sums[:, -1:] > 0, means.to(centroids), centroids)
        clusters = _nearest(embeddings, centroids)
        tick()
    return clusters, centroids


def _nearest(embeddings: Tensor, centroids: Tensor) -> Tensor:
    return torch.cat([(part @ centroids.T).argmax(1) for part in embeddings.split(CHUNK)])


def _sum_over_ranks(values: Tensor) -> Tensor:
    """Sum `values` over the ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
