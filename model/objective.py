"""The codes and the loss of a training step (SwAV, Caron et al., NeurIPS 2020, sections 3.1 and 3.2).

With z an embedding of unit length, C the prototypes c_1 ... c_K and tau the temperature, crop t predicts the code q of
crop s (equation 2):

    l(z_t, q_s) = - sum_k q_s[k] log p_t[k],    p_t[k] = exp(z_t . c_k / tau) / sum_j exp(z_t . c_j / tau)

The codes Q of a batch of B embeddings Z are those that fit their scores best while all prototypes take the same share
of the batch (equations 3 and 4); Sinkhorn-Knopp's iterations find the vectors u and v (equation 5):

    max over Q of  Tr(Q^T C^T Z) + epsilon H(Q),    Q >= 0,  Q 1_B = 1_K / K,  Q^T 1_K = 1_B / B
    Q* = Diag(u) exp(C^T Z / epsilon) Diag(v)

The loss is the mean of l(z_t, q_s) over the crops s that give codes and all other crops t (equation 1 for two crops,
equation 6 for several). DeepCluster-v2 and SeLa-v2 (section 4.1 and appendix) have an image's cluster in the epoch in
place of a code, and every crop predicts it. Distillation has a trained teacher's codes, which every crop predicts too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.clustering.deepcluster import assigned_prediction, one_hot
from model.loss import distillation, swapped_prediction
from model.sinkhorn import hard_codes, sinkhorn
from model.views import select_views


@dataclass(frozen=True)
class Objective:
    """Computes codes and loss by a run's settings; it has no state.

    assigning: the crops that give codes, by their place among all crops ((0, 1) in the paper).
    epsilon, iterations: of Sinkhorn-Knopp (0.05 and 3 in the paper).
    temperature: tau (0.1 in the paper).
    prototypes: K, the prototypes of one head; heads: how many sets of K lie side by side in scores and codes.
    hard: the strongest prototype of a code counts alone.
    distilled: the codes are a trained teacher's, and every crop predicts each of them, also the crop that gave it.
    """

    assigning: tuple[int, ...]
    epsilon: float
    iterations: int
    temperature: float
    prototypes: int
    heads: int = 1
    hard: bool = False
    distilled: bool = False

    def of_assigning(self, values: Float[Tensor, "crops batch width"]) -> Float[Tensor, "assigning batch width"]:
        """The rows of the assigning crops, without gradient: a view of `values` where these crops are consecutive."""
        return select_views(values.detach(), self.assigning)

    @torch.no_grad()
    def codes(
        self,
        scores: Float[Tensor, "assigning batch heads_prototypes"],
        queue_scores: Float[Tensor, "assigning length heads_prototypes"] | None = None,
        targets: Int[Tensor, "heads batch"] | None = None,
    ) -> Float[Tensor, "assigning batch heads_prototypes"]:
        """The codes of a step, without gradient; each head's part of a row sums to 1.

        scores: cosine similarities of the assigning crops' embeddings with the prototypes, from the network or from
            its teacher. Collective: the batch is that of all ranks.
        queue_scores: scores of the queued embeddings, which enlarge the batch and get no codes (section 3.1).
        targets: for the clustering methods, the clusters of the images in this epoch. The codes are then these clusters
            as one-hot rows (zeros for an image without a cluster).
        """
        if targets is not None:
            return one_hot(targets, self.prototypes).expand(len(self.assigning), -1, -1)
        batch = scores.shape[1]
        if queue_scores is not None:
            scores = torch.cat([queue_scores, scores], dim=1)
        codes = sinkhorn(scores, self.epsilon, self.iterations, check=False, heads=self.heads)[:, -batch:]
        return hard_codes(codes, self.heads) if self.hard else codes

    def loss(
        self,
        codes: Float[Tensor, "assigning batch heads_prototypes"],
        scores: Float[Tensor, "crops batch heads_prototypes"],
        targets: Int[Tensor, "heads batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean cross entropy of a step on this rank, in nats, with the gradient of `scores`.

        scores: of all crops, from the network. codes, targets: the result and the argument of `codes`.
        """
        if targets is not None:
            return assigned_prediction(targets, scores, self.temperature)
        if self.distilled:
            return distillation(codes, scores, self.temperature, self.heads)
        return swapped_prediction(codes, scores, self.assigning, self.temperature, self.heads)
