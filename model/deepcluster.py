"""DeepCluster-v2 and SeLa-v2: targets of an epoch from the embeddings of the one before (SwAV, section 4 and appendix).

Both predict, from every crop, the cluster that the sample was assigned to at the start of the epoch; several heads of
prototypes look at it, each with an assignment of its own. They differ in how samples are assigned:

    DeepCluster-v2   spherical k-means; the centroids become the head's prototypes, which take no gradient
    SeLa-v2          Sinkhorn over all samples and the head's prototypes, which are learnt; the strongest code counts

The heads' prototypes are one matrix, head after head: [heads * prototypes, dim].
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from model.kmeans import first_centroids, spherical_kmeans
from model.memory import Memory
from model.sinkhorn import sinkhorn

IGNORED = -100  # the target of a row that was not in the memory: it counts in no loss


@torch.no_grad()
def kmeans_targets(
    memory: Memory, images: int, heads: int, prototypes: int, seed: int, epoch: int, iterations: int = 10
) -> tuple[Int[Tensor, "heads images"], Float[Tensor, "heads_prototypes dim"]]:
    """DeepCluster-v2: every row's cluster by each head (IGNORED without one), and the prototypes to go with them.

    images: rows of the dataset's table. The heads take the crops' memories in turn. The random choice of first
    centroids depends on seed, epoch and head alone. Alike on all ranks. Raises ValueError for too few samples.
    """
    targets, centroids = [], []
    for head in range(heads):
        embeddings = memory.embeddings[head % len(memory.embeddings)]
        start = first_centroids(memory.rows, embeddings, prototypes, images, (seed, epoch, head))
        assigned, found = spherical_kmeans(embeddings, start, iterations)
        targets.append(_over_images(memory.rows, assigned, images))
        centroids.append(found)
    return torch.stack(targets), torch.cat(centroids)


@torch.no_grad()
def sinkhorn_targets(
    memory: Memory,
    images: int,
    heads: int,
    prototypes: Float[Tensor, "heads_prototypes dim"],
    epsilon: float,
    iterations: int = 3,
) -> Int[Tensor, "heads images"]:
    """SeLa-v2: every row's strongest code by each head (IGNORED without one), balanced over the samples of all ranks.

    Needs room for this rank's samples times the prototypes of one head. Alike on all ranks.
    """
    targets = []
    for head, weight in enumerate(prototypes.chunk(heads)):
        scores = memory.embeddings[head % len(memory.embeddings)] @ weight.T
        codes = sinkhorn(scores, epsilon, iterations)
        targets.append(_over_images(memory.rows, codes.argmax(1), images))
    return torch.stack(targets)


def one_hot(targets: Int[Tensor, "heads batch"], prototypes: int) -> Float[Tensor, "batch heads_prototypes"]:
    """The targets as codes, head beside head; IGNORED ones are zeros."""
    codes = torch.nn.functional.one_hot(targets.T.clamp(min=0), prototypes) * targets.T.ne(IGNORED).unsqueeze(-1)
    return codes.flatten(1).float()


def assigned_prediction(
    targets: Int[Tensor, "heads batch"], scores: Float[Tensor, "crops batch heads_prototypes"], temperature: float
) -> Float[Tensor, ""]:
    """Cross entropy between the samples' clusters and the predictions from all of their crops.

    Mean over heads, crops and batch, in nats. A row without a cluster counts as 0: were the others' mean taken instead,
    ranks and parts of a batch with fewer of them would weigh each more, and the loss depend on the number of ranks.
    scores: cosine similarities; temperature: of the softmax, 0.1 in the paper. float32 whatever autocast says.
    """
    heads = len(targets)
    with torch.autocast(scores.device.type, enabled=False):
        dtype = torch.promote_types(scores.dtype, torch.float32)
        logits = scores.to(dtype).unflatten(-1, (heads, -1)) / temperature  # [crops, batch, heads, prototypes]
        expected = targets.T.expand(len(scores), -1, -1)
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 2), expected.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / expected.numel()


def _over_images(
    rows: Int[Tensor, " samples"], assigned: Int[Tensor, " samples"], images: int
) -> Int[Tensor, " images"]:
    """All ranks' assignments by row of the dataset."""
    table = torch.zeros(images, dtype=torch.int64, device=rows.device)
    table[rows] = assigned + 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(table)
    return torch.where(table > 0, table - 1, IGNORED)
