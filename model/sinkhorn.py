"""Codes by the Sinkhorn-Knopp iteration over the batch of all ranks (SwAV, section 3.1, equations 3 to 5).

The codes are Q = diag(v) P diag(u) with P = exp(scores / epsilon), [samples, prototypes]; u and v give all samples the
same weight and all prototypes the same weight. It starts with v = 1, and an iteration is

    u <- 1 / (v P, summed over the samples of all ranks)    (prototypes: one all-reduce)
    v <- 1 / (P u)                                          (samples: local)

So exp is computed once, and the rest are products of a matrix and a vector. The constants of the textbook form (the
global sum, the number of prototypes K, the number of samples B) are one factor for the whole matrix, which the next
normalization of the samples cancels, so they need no collective.

Range. For |scores| / epsilon <= 35 everything stays inside float32: u and v are at most e^35 times a sum of samples,
and v at worst e^70 times it, about 1e36 for a million samples. Without the constants the sums of the prototypes change
by a factor of samples / prototypes in each iteration, so after every `RESCALED` iterations they are divided by their
mean, which cancels too. The scores of unit vectors are within +-1, so an epsilon of at least 1/35 = 0.0286 is always
inside. For a smaller epsilon the computation uses logarithms, with one softmax per iteration: with logits = scores /
epsilon and a = -log u, the codes are softmax(logits - a), and v need not be stored.

To stay in range, a global constant or one value per prototype may be subtracted from the logits, because u absorbs
both exactly. A value per sample (the usual softmax trick) may not: before the first sums of the prototypes it would
change the weights of the samples, and with them the codes.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

# Whether CUDA uses the kernels of model.sinkhorn_fused. Off until `python -m perf.gpu_check --only codes` has passed on
# a GPU: so far they have run in Triton's interpreter only.
with_kernels = False

# Largest |scores| / epsilon for which products of exponentials stay inside the dtype; the margin is the same for both.
PRODUCT_RANGE = {torch.float32: 35.0, torch.float64: 300.0}
RESCALED = 4  # iterations between divisions of the sums by their mean; the paper has three iterations

# exp() of a float64 is a normal number within +-708; the margin is for the sum over ranks. The scores of unit vectors
# are within +-1, so any epsilon of at least 0.0016 stays inside.
_LOG_RANGE = 650.0


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "*crops batch prototypes"],
    epsilon: float,
    iterations: int,
    group: "dist.ProcessGroup | None" = None,
    check: bool = True,
    heads: int = 1,
) -> Float[Tensor, "*crops batch prototypes"]:
    """Soft assignment of each sample to the prototypes, balanced over the samples of all ranks.

    scores: similarity of embeddings and prototypes, this rank's rows: [batch, prototypes], or [crops, batch,
        prototypes] for several crops, which are balanced separately. Any float dtype and range; `batch` may
        differ between ranks.
    epsilon: weight of the entropy term, > 0 (0.05 in the paper); any number for which float64 holds scores / epsilon.
    iterations: at least 1 (3 in the paper). Each costs one all-reduce of crops x prototypes numbers.
    group: the ranks that share the batch; None is all ranks if torch.distributed is initialized, else this process.
    check: False promises that the scores are finite cosines (|scores| <= 1). Then they are not checked and the host
        never waits for the device; valid down to epsilon = 0.0016. NaN scores give NaN codes.
    heads: sets of prototypes, one after the other in the last axis, which are balanced separately.

    Returns the codes, shaped like `scores`: every row (of each head) sums to 1. Computed in float32 (float64 for
    float64 scores), also in autocast; without gradient.

    Collectives: `iterations` for all crops and heads together. If the scores of any rank are out of range (|scores| /
    epsilon > 35, or about 650 if epsilon < 1/35; 300 and 650 for float64), all ranks compute in float64 with two more.

    Raises FloatingPointError on every rank if any score of any rank, or its quotient by epsilon, is NaN or infinite.
    """
    if not 0 < epsilon < math.inf or iterations < 1:
        raise ValueError(f"sinkhorn needs epsilon > 0 and iterations >= 1, got {epsilon} and {iterations}")
    if not check and epsilon * _LOG_RANGE < 1:
        raise ValueError(f"unchecked codes need epsilon >= {1 / _LOG_RANGE:.4f}, got {epsilon}")
    if scores.ndim not in (2, 3):
        raise ValueError(f"sinkhorn needs scores of 2 or 3 dimensions, got shape {tuple(scores.shape)}")
    if heads > 1:  # each head counts as further crops
        each = scores.unflatten(-1, (heads, -1)).movedim(-2, -3)  # [*crops, heads, batch, prototypes]
        balanced = sinkhorn(each.reshape(-1, *each.shape[-2:]), epsilon, iterations, group, check)
        return balanced.view(each.shape).movedim(-3, -2).flatten(-2)

    with torch.autocast(scores.device.type, enabled=False):
        dtype = torch.promote_types(scores.dtype, torch.float32)
        by_products = epsilon * PRODUCT_RANGE[dtype] >= 1  # depends on epsilon alone, so it is equal on all ranks
        if with_kernels and by_products and not check and scores.is_cuda and (fused := _fused()) and fused.fits(scores):
            return fused.fused_codes(scores, epsilon, iterations, lambda sums: _all_reduce(sums, group), RESCALED)
        scores = scores.to(dtype)
        method = _by_products if by_products else _by_logarithms
        codes = method(scores, epsilon, iterations, group, check)
        if codes is None:  # out of the method's range
            logits = scores.double() / epsilon
            codes = _softmaxes(logits, _first_potential_any_range(logits, group), iterations, group)
        return codes.to(dtype)


@torch.no_grad()
def hard_codes(codes: Float[Tensor, "*rows prototypes"], heads: int = 1) -> Float[Tensor, "*rows prototypes"]:
    """The paper's discrete codes: 1 for the strongest prototype of each row (of each head in it), 0 for the others."""
    each = codes.unflatten(-1, (heads, -1))
    return torch.zeros_like(each).scatter_(-1, each.argmax(-1, keepdim=True), 1).flatten(-2)


# ---- products of exponentials ----------------------------------------------------------------------------
def _by_products(
    scores: Float[Tensor, "*crops batch prototypes"],
    epsilon: float,
    iterations: int,
    group: "dist.ProcessGroup | None",
    check: bool,
) -> Float[Tensor, "*crops batch prototypes"] | None:
    """The codes; None if the scores of any rank are too large."""
    outside = scores.abs().amax() > epsilon * PRODUCT_RANGE[scores.dtype] if check else None
    plan = (scores * (math.log2(math.e) / epsilon)).exp2_()  # four times as fast as exp on a CPU with AVX-512
    sums = plan.sum(dim=-2)
    reduced = _all_reduce(sums, group) if outside is None else _checked_sums(scores, sums, outside, group, epsilon)
    if reduced is None:
        return None
    weights = 1 / reduced
    for iteration in range(1, iterations):
        samples = 1 / _times_prototypes(plan, weights)
        sums = _all_reduce(_times_samples(plan, samples), group)
        weights = 1 / (sums if iteration % RESCALED else sums / sums.mean(dim=-1, keepdim=True))
    samples = 1 / _times_prototypes(plan, weights)
    return plan.mul_(weights.unsqueeze(-2)).mul_(samples.unsqueeze(-1))


def _times_samples(
    plan: Float[Tensor, "*crops batch prototypes"], samples: Float[Tensor, "*crops batch"]
) -> Float[Tensor, "*crops prototypes"]:
    if plan.is_cuda:  # a matrix product may be rounded to TF32 there
        return (plan * samples.unsqueeze(-1)).sum(dim=-2)
    return torch.matmul(samples.unsqueeze(-2), plan).squeeze(-2)


def _times_prototypes(
    plan: Float[Tensor, "*crops batch prototypes"], weights: Float[Tensor, "*crops prototypes"]
) -> Float[Tensor, "*crops batch"]:
    if plan.is_cuda:
        return (plan * weights.unsqueeze(-2)).sum(dim=-1)
    if plan.ndim == 2:
        return torch.mv(plan, weights)
    return torch.stack([torch.mv(*crop) for crop in zip(plan, weights, strict=True)])  # bmm takes 14 times as long


def _fused() -> Any:
    """The module of the CUDA kernels; None if Triton is not installed."""
    try:
        from model import sinkhorn_fused
    except ImportError:
        return None
    return sinkhorn_fused


# ---- logarithms ------------------------------------------------------------------------------------------
def _by_logarithms(
    scores: Float[Tensor, "*crops batch prototypes"],
    epsilon: float,
    iterations: int,
    group: "dist.ProcessGroup | None",
    check: bool,
) -> Float[Tensor, "*crops batch prototypes"] | None:
    """The codes; None if the sums of any rank are out of the range of float64.

    The local sums are logarithms until the all-reduce, which sends them as float64. Its exponent range saves a
    collective to agree on a common shift.
    """
    logits = scores / epsilon
    log_sums = torch.logsumexp(logits, dim=-2).double()
    if check:
        outside = (~(log_sums.abs() <= _LOG_RANGE)).any()
        reduced = _checked_sums(scores, log_sums.exp(), outside, group, epsilon)
    else:
        reduced = _all_reduce(log_sums.exp(), group)
    if reduced is None:
        return None
    return _softmaxes(logits, reduced.log().to(logits.dtype), iterations, group)


def _softmaxes(
    logits: Float[Tensor, "*crops batch prototypes"],
    potential: Float[Tensor, "*crops prototypes"],
    iterations: int,
    group: "dist.ProcessGroup | None",
) -> Float[Tensor, "*crops batch prototypes"]:
    """The codes from the first potential on. Float32 needs no shift here: after the normalization of the prototypes no
    sample's sum exceeds K, so after that of the samples the sums of the prototypes are between 1/K and B."""
    for _ in range(iterations - 1):
        sums = torch.softmax(logits - potential.unsqueeze(-2), dim=-1).sum(dim=-2)
        potential = potential + _all_reduce(sums, group).log()
    return torch.softmax(logits - potential.unsqueeze(-2), dim=-1)


def _first_potential_any_range(
    logits: Float[Tensor, "*crops batch prototypes"], group: "dist.ProcessGroup | None"
) -> Float[Tensor, "*crops prototypes"]:
    """The first potential for logits of any finite size, shifted by the global maximum of each prototype."""
    shift = _all_reduce(logits.amax(dim=-2), group, dist.ReduceOp.MAX)
    sums = _all_reduce((logits - shift.unsqueeze(-2)).exp().sum(dim=-2), group)
    return shift + sums.log()


# ---- over the ranks --------------------------------------------------------------------------------------
def _checked_sums(
    scores: Float[Tensor, "*crops batch prototypes"],
    sums: Float[Tensor, "*crops prototypes"],
    outside: Tensor,
    group: "dist.ProcessGroup | None",
    epsilon: float,
) -> Float[Tensor, "*crops prototypes"] | None:
    """The sums over all ranks; None on all ranks if one is `outside`. Raises FloatingPointError if scores of any rank
    are not finite, or too large to be divided by epsilon. Two counts are sent in the same vector, so that all ranks
    decide in the same way."""
    largest = min(torch.finfo(scores.dtype).max, torch.finfo(torch.float64).max / 4 * min(epsilon, 1.0))
    bad = (~(scores.abs() <= largest)).sum()
    counts = torch.stack([bad, outside]).to(sums.dtype)
    totals = _all_reduce(torch.cat([sums.flatten(), counts]), group)
    bad_count, outside_count = totals[-2:].tolist()  # the only wait for the device
    if bad_count:
        raise FloatingPointError(f"{bad_count:.0f} scores over all ranks are NaN or infinite: no codes")
    return None if outside_count else totals[:-2].view_as(sums)


def _all_reduce(
    values: Tensor, group: "dist.ProcessGroup | None", op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM
) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, op=op, group=group)
    return values
