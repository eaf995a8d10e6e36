"""The swapped prediction loss (SwAV, equations 1 and 2, with multi-crop as in section 3.2, equation 6)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def swapped_prediction(
    codes: Float[Tensor, "assigning batch prototypes"],
    scores: Float[Tensor, "crops batch prototypes"],
    assigning: Sequence[int],
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross entropy between each assigning crop's codes and the predictions from all the other crops.

    codes: targets of the assigning crops, rows sum to 1, without gradient; in the order of `assigning`.
    scores: cosine similarities of all crops' embeddings with the prototypes.
    assigning: the indices into `crops` of the crops that gave the codes ((0, 1) in the paper).
    temperature: the softmax temperature, > 0 (0.1 in the paper).

    Returns the mean over assigning crops, over the other crops and over the batch, in nats: ln(prototypes) for uniform
    predictions. float32 (float64 for float64 scores) whatever autocast says.

    Raises ValueError if there are fewer than two crops or as many codes as assigning crops are not given.
    """
    crops = scores.shape[0]
    if crops < 2 or len(codes) != len(assigning):
        raise ValueError(
            f"swapped prediction needs two or more crops and codes for each assigning crop, "
            f"got {crops} crops, {len(codes)} codes and assigning crops {list(assigning)}"
        )
    with torch.autocast(scores.device.type, enabled=False):
        dtype = torch.promote_types(scores.dtype, torch.float32)
        log_predictions = torch.log_softmax(scores.to(dtype) / temperature, dim=-1)
        # A crop does not predict its own code. Summing the others first takes one product per assigning crop
        # instead of one per pair, and no matrix product, which TF32 would round.
        others = log_predictions.sum(dim=0) - log_predictions[list(assigning)]
        return -(codes * others).sum(dim=-1).mean() / (crops - 1)
