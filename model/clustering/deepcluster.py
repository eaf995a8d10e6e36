"""DeepCluster-v2 and SeLa-v2: an epoch's targets from the embeddings of the last epoch (SwAV, section 4 and appendix).

Both predict from every crop the cluster to which its sample was assigned at the start of the epoch. There are several
heads of prototypes, each with its own assignment. The methods differ in the assignment:

    DeepCluster-v2   spherical k-means; the centroids become the head's prototypes, which get no gradient
    SeLa-v2          Sinkhorn over all samples and the head's learned prototypes; the strongest code is the target

The prototypes of all heads are one matrix, head after head: [heads * prototypes, dim].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from model.clustering.kmeans import first_centroids, spherical_kmeans
from model.clustering.memory import Memory
from model.sinkhorn import sinkhorn

IGNORED = -100  # target of a row that is not in the memory; the loss ignores it
ITERATIONS = 10  # of k-means for each head, as published


@torch.no_grad()
def kmeans_targets(
    memory: Memory,
    images: int,
    heads: int,
    prototypes: int,
    seed: int,
    epoch: int,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Int[Tensor, "heads images"], Float[Tensor, "heads_prototypes dim"]]:
    """DeepCluster-v2: the cluster of every row for each head (IGNORED for rows without one), and the new prototypes.

    images: rows of the dataset's table. Heads use the memories of the crops in turn. The random first centroids depend
    on seed, epoch and head alone. The results are equal on all ranks. tick: called after each of the ITERATIONS of each
    head. Raises ValueError for too few samples.
    """
    targets, centroids = [], []
    for head in range(heads):
        embeddings = memory.embeddings[head % len(memory.embeddings)]
        start = first_centroids(memory.rows, embeddings, prototypes, images, (seed, epoch, head))
        clusters, final = spherical_kmeans(embeddings, start, ITERATIONS, tick)
        targets.append(_over_images(memory.rows, clusters, images))
        centroids.append(final)
    return torch.stack(targets), torch.cat(centroids)


@torch.no_grad()
def sinkhorn_targets(
    memory: Memory,
    images: int,
    heads: int,
    prototypes: Float[Tensor, "heads_prototypes dim"],
    epsilon: float,
    iterations: int = 3,
    tick: Callable[[], object] = lambda: None,
) -> Int[Tensor, "heads images"]:
    """SeLa-v2: the strongest code of every row for each head (IGNORED for rows without one), balanced over all ranks.

    Needs memory for this rank's samples times the prototypes of one head. The result is equal on all ranks. tick:
    called after each head.
    """
    targets = []
    for head, weight in enumerate(prototypes.chunk(heads)):
        scores = memory.embeddings[head % len(memory.embeddings)] @ weight.T
        codes = sinkhorn(scores, epsilon, iterations)
        targets.append(_over_images(memory.rows, codes.argmax(1), images))
        tick()
    return torch.stack(targets)


def one_hot(targets: Int[Tensor, "heads batch"], prototypes: int) -> Float[Tensor, "batch heads_prototypes"]:
    """The targets as codes, head after head in the last axis; all zeros for IGNORED."""
    codes = torch.nn.functional.one_hot(targets.T.clamp(min=0), prototypes) * targets.T.ne(IGNORED).unsqueeze(-1)
    return codes.flatten(1).float()


def assigned_prediction(
    targets: Int[Tensor, "heads batch"], scores: Float[Tensor, "crops batch heads_prototypes"], temperature: float
) -> Float[Tensor, ""]:
    """Cross entropy between the clusters of the samples and the predictions from all their crops.

    Mean over heads, crops and batch, in nats. A row without a cluster counts as 0. A mean over the other rows alone
    would give each of them more weight on ranks with fewer, so the loss would depend on the number of ranks.
    scores: cosine similarities; temperature: of the softmax, 0.1 in the paper. Computed in float32, also in autocast.
    """
    heads = len(targets)
    with torch.autocast(scores.device.type, enabled=False):
        dtype = torch.promote_types(scores.dtype, torch.float32)
        logits = scores.to(dtype).unflatten(-1, (heads, -1)) / temperature  # [crops, batch, heads, prototypes]
        labels = targets.T.expand(len(scores), -1, -1)
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 2), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / labels.numel()


def _over_images(
    rows: Int[Tensor, " samples"], clusters: Int[Tensor, " samples"], images: int
) -> Int[Tensor, " images"]:
    """The clusters of all ranks' samples by row of the dataset; IGNORED for other rows."""
    table = torch.zeros(images, dtype=torch.int64, device=rows.device)
    table[rows] = clusters + 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(table)
    return torch.where(table > 0, table - 1, IGNORED)
