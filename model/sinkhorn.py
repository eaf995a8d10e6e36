"""Codes by the Sinkhorn-Knopp iteration over the batch of all ranks (SwAV, section 3.1, equations 3 to 5).

The codes are Q = diag(u) exp(scores / epsilon) diag(v), with u and v such that all samples weigh the same and
all prototypes weigh the same. Here in the log domain: with logits = scores / epsilon and one potential a per
prototype, an iteration is

    a <- log of the sum over the samples of all ranks of exp(logits - b)    (prototypes: one all-reduce)
    b <- logsumexp over the prototypes of (logits - a)                      (samples: local)

and the codes are exp(logits - a - b), which is softmax(logits - a): b never needs to be kept. The constants
of the textbook form (the global sum, the number of prototypes K, the number of samples B) are one factor for
the whole matrix, and the next normalisation of the samples cancels it: no collective is spent on them.

What may be subtracted from the logits for the sake of numerical range: a global constant or one value per
prototype, because `a` absorbs either exactly. Not one value per sample (the usual softmax trick): before the
first prototype sums it would weigh the samples differently and change the codes.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

# exp() of a float64 is a normal number within +-708; the rest is room for the sum over ranks. The scores of
# unit vectors are within +-1, so that any epsilon from 0.0016 upwards stays inside.
_LOG_RANGE = 650.0


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "*crops batch prototypes"],
    epsilon: float,
    iterations: int,
    group: "dist.ProcessGroup | None" = None,
    check: bool = True,
) -> Float[Tensor, "*crops batch prototypes"]:
    """Soft assignment of each sample to the prototypes, balanced over the samples of all ranks.

    scores: similarity of embeddings and prototypes, this rank's rows: [batch, prototypes], or [crops, batch,
        prototypes] for several crops at once, each balanced on its own. Any float dtype and any range; ranks
        may differ in `batch`.
    epsilon: weight of the entropy term, > 0 (0.05 in the paper).
    iterations: at least 1 (3 in the paper). Each costs one all-reduce of crops x prototypes numbers.
    group: the ranks that share the batch; None is all of them where torch.distributed is initialised, else
        this process.

    Returns the codes, shaped like `scores`: every row sums to 1. Computed in float32 (float64 for float64
    scores) whatever autocast says; no gradient.

    Collectives: `iterations` for all crops together. Scores too large for float64's exponential on any rank
    (|scores| / epsilon > 650) take two more, on all ranks together, and are computed in float64.

    Raises FloatingPointError on every rank if any score of any rank is NaN or infinite.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"sinkhorn needs epsilon > 0 and iterations >= 1, got {epsilon} and {iterations}")
    if scores.ndim not in (2, 3):
        raise ValueError(f"sinkhorn needs scores of 2 or 3 dimensions, got shape {tuple(scores.shape)}")

    with torch.autocast(scores.device.type, enabled=False):
        dtype = torch.promote_types(scores.dtype, torch.float32)
        scores = scores.to(dtype)
        logits = scores / epsilon
        potential, outside = _first_potential(scores, logits, group, check)
        if outside:
            logits = scores.double() / epsilon
            potential = _first_potential_any_range(logits, group)

        # From here on float32 needs no shift: after the prototypes' normalisation no sample's sum exceeds K,
        # so that after the samples' the prototypes' sums lie between 1/K and B.
        for _ in range(iterations - 1):
            sums = torch.softmax(logits - potential.unsqueeze(-2), dim=-1).sum(dim=-2)
            potential = potential + _all_reduce(sums, group).log()
        return torch.softmax(logits - potential.unsqueeze(-2), dim=-1).to(dtype)


def _first_potential(
    scores: Float[Tensor, "*crops batch prototypes"],
    logits: Float[Tensor, "*crops batch prototypes"],
    group: "dist.ProcessGroup | None",
    check: bool,
) -> tuple[Float[Tensor, "*crops prototypes"], bool]:
    """The first potential, and whether some rank's sums left the range of float64 (then it is void).

    The local sums are logarithms until the moment of the all-reduce and travel as float64, whose exponent
    range spares the collective that would agree on a shift. Two counts ride along in the same vector, so that
    all ranks decide alike.
    """
    log_sums = torch.logsumexp(logits, dim=-2).double()
    if not check:
        return _all_reduce(log_sums.exp(), group).log().to(logits.dtype), False
    bad = (~torch.isfinite(scores)).sum().double()
    outside = (~(log_sums.abs() <= _LOG_RANGE)).any().double()
    sums = _all_reduce(torch.cat([log_sums.exp().flatten(), torch.stack([bad, outside])]), group)
    bad_count, outside_count = sums[-2:].tolist()  # the one wait for the device
    if bad_count:
        raise FloatingPointError(f"{bad_count:.0f} scores over all ranks are NaN or infinite: no codes")
    return sums[:-2].log().view_as(log_sums).to(logits.dtype), bool(outside_count)


def _first_potential_any_range(
    logits: Float[Tensor, "*crops batch prototypes"], group: "dist.ProcessGroup | None"
) -> Float[Tensor, "*crops prototypes"]:
    """The first potential for logits of any finite size: shifted by each prototype's global maximum."""
    shift = _all_reduce(logits.amax(dim=-2), group, dist.ReduceOp.MAX)
    sums = _all_reduce((logits - shift.unsqueeze(-2)).exp().sum(dim=-2), group)
    return shift + sums.log()


def _all_reduce(
    values: Tensor, group: "dist.ProcessGroup | None", op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM
) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, op=op, group=group)
    return values
