"""The swapped prediction loss (SwAV, equations 1 and 2, with multi-crop as in section 3.2, equation 6)."""

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
        dtype = torch.promote_types(scores.dtype, torch.float32)
        by_head = (scores.to(dtype) / temperature).unflatten(-1, (heads, -1))
        log_predictions = torch.log_softmax(by_head, dim=-1)
        # A crop does not predict its own code. Summing the others first takes one product per assigning crop
        # instead of one per pair, and no matrix product, which TF32 would round.
        others = log_predictions.sum(dim=0) - select_views(log_predictions, assigning)
        return -(codes.unflatten(-1, (heads, -1)) * others).sum(dim=-1).mean() / (crops - 1)
