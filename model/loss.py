"""The swapped prediction loss (SwAV, equations 1 and 2, with multi-crop as in section 3.2, equation 6), and the loss of
a distillation (SEED, Fang et al., ICLR 2021, arXiv 2101.04731, section 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from model.views import select_views


def swapped_prediction(
    codes: Float[Tensor, "assigning batch heads_prototypes"],
    scores: Float[Tensor, "crops batch heads_prototypes"],
    assigning: Sequence[int],
    temperature: float,
    heads: int = 1,
) -> Float[Tensor, ""]:
    """Cross entropy between each assigning crop's codes and the predictions from all the other crops.

    codes: targets of the assigning crops, without gradient; each head's part of a row sums to 1. In the order of
        `assigning`.
    scores: cosine similarities of all crops' embeddings with the prototypes.
    assigning: the indices into `crops` of the crops that gave the codes ((0, 1) in the paper).
    temperature: the softmax temperature, > 0 (0.1 in the paper).
    heads: sets of prototypes that lie side by side in the last axis; each predicts its own codes.

    Returns the mean over assigning crops, the other crops, the batch and the heads, in nats: ln(prototypes) for uniform
    predictions, where prototypes counts those of one head. float32 (float64 for float64 scores), also under autocast.

    Raises ValueError for fewer than two crops, or if codes and assigning crops differ in number.
    """
    crops = scores.shape[0]
    if crops < 2 or len(codes) != len(assigning):
        raise ValueError(
            f"swapped prediction needs two or more crops and codes for each assigning crop, "
            f"got {crops} crops, {len(codes)} codes and assigning crops {list(assigning)}"
        )
    with torch.autocast(scores.device.type, enabled=False):
        log_predictions = _log_predictions(scores, temperature, heads)
        # A crop does not predict its own code. Summing the others first takes one product per assigning crop
        # instead of one per pair, and no matrix product, which TF32 would round.
        others = log_predictions.sum(dim=0) - select_views(log_predictions, assigning)
        return -(codes.unflatten(-1, (heads, -1)) * others).sum(dim=-1).mean() / (crops - 1)


def distillation(
    codes: Float[Tensor, "seen batch heads_prototypes"],
    scores: Float[Tensor, "crops batch heads_prototypes"],
    temperature: float,
    heads: int = 1,
) -> Float[Tensor, ""]:
    """Cross entropy between a trained teacher's codes and the student's predictions from every crop.

    With q_s the code of the crop s that the teacher sees, and p_t the student's softmax over the prototypes of crop t:

        the mean over s and t of  - sum_k q_s[k] log p_t[k]

    SEED has one view, the same for both. codes, scores, temperature, heads and the result are as in
    `swapped_prediction`; the seen crops may be crops of the student or others.
    """
    with torch.autocast(scores.device.type, enabled=False):
        predicted = _log_predictions(scores, temperature, heads).mean(dim=0)
        return -(codes.unflatten(-1, (heads, -1)) * predicted).sum(dim=-1).mean()


def _log_predictions(scores: Tensor, temperature: float, heads: int) -> Float[Tensor, "crops batch heads prototypes"]:
    dtype = torch.promote_types(scores.dtype, torch.float32)
    by_head = (scores.to(dtype) / temperature).unflatten(-1, (heads, -1))
    return torch.log_softmax(by_head, dim=-1)
