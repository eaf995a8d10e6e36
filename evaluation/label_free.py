"""Measures of a representation that need no labels: RankMe, LiDAR and alpha-ReQ. All are computed in float64.

They tell runs of one method apart, not methods: each paper compares hyperparameters of the same recipe. A rank is at
most the number of images and at most the number of dimensions, so compare runs with equal numbers of both.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

FIRST, LAST = 3, 100  # of alpha-ReQ's fit, counted from 0: the range of the authors' code
EPSILON = 1e-7  # of RankMe, for float32


def rankme(rows: Float[Tensor, "rows dim"], epsilon: float = EPSILON) -> float:
    """RankMe: the exponential of the entropy of the normalized singular values s_k of the rows, not centered.

        p_k = s_k / sum(s) + epsilon,    RankMe = exp(-sum_k p_k ln p_k)

    From 1 (collapse onto a line) to min(rows, dim). Garrido, Balestriero, Najman and LeCun, "RankMe", ICML 2023;
    after the effective rank of Roy and Vetterli, 2007. The paper takes 25,600 images.
    """
    return _effective_rank(torch.linalg.svdvals(rows.double()), epsilon)


def lidar(rows: Float[Tensor, "images augmentations dim"], delta: float = 1e-4, epsilon: float = EPSILON) -> float:
    """LiDAR: the effective rank of the matrix of a linear discriminant analysis whose classes are the images.

        B = E_x[(m_x - m)(m_x - m)^T]                        of the images' mean embeddings m_x around their mean m
        W = E_x E_a[(e_xa - m_x)(e_xa - m_x)^T] + delta I    of the augmentations around their image's mean
        l = eigenvalues of W^(-1/2) B W^(-1/2),   p_k = l_k / sum(l) + epsilon,   LiDAR = exp(-sum_k p_k ln p_k)

    From 1 to min(images - 1, dim). Thilak et al., "LiDAR", ICLR 2024; the paper takes 1,000 images and 50
    augmentations of each. Augmentations: 2 or more.
    """
    values = rows.double()
    means = values.mean(1)
    between = _second_moment(means - means.mean(0))
    within = _second_moment((values - means[:, None]).flatten(0, 1))
    within += delta * torch.eye(within.shape[0], dtype=torch.float64, device=within.device)
    variances, axes = torch.linalg.eigh(within)
    whitening = axes * variances.rsqrt()  # another root than the symmetric one: a rotation, with the same eigenvalues
    return _effective_rank(torch.linalg.eigvalsh(whitening.T @ between @ whitening).clamp(min=0), epsilon)


def alpha_req(rows: Float[Tensor, "rows dim"], first: int = FIRST, last: int = LAST) -> float:
    """alpha-ReQ: the exponent alpha of the power law l_i ~ i^(-alpha) of the eigenvalues of the rows' covariance.

    A line through ln l_i over ln i for i from first + 1 to last, by least squares with weights 1 / i. Near 1 the
    representation is good; a larger one has few dimensions, a smaller one has noise in many. Agrawal et al., "alpha-
    ReQ", NeurIPS 2022; the fit is that of Stringer et al., Nature 2019, with the range of the authors' code.

    The range ends earlier where there are fewer eigenvalues, of which rows - 1 at most are above 0; nan where fewer
    than 3 are left.
    """
    values = rows.double()
    spectrum = torch.linalg.svdvals(values - values.mean(0)).square() / max(len(values) - 1, 1)
    above = int((spectrum > spectrum[0] * 1e-12).sum()) if float(spectrum[0]) > 0 else 0
    numbers = torch.arange(first, max(first, min(last, above)), dtype=torch.float64, device=values.device) + 1
    if len(numbers) < 3:
        return float("nan")
    x, y, weights = numbers.log(), spectrum[first : first + len(numbers)].log(), 1 / numbers
    weights = weights / weights.sum()
    x, y = x - (weights * x).sum(), y - (weights * y).sum()
    return -float((weights * x * y).sum() / (weights * x.square()).sum())


def _effective_rank(values: Float[Tensor, " values"], epsilon: float) -> float:
    """exp of the entropy of values >= 0 as shares; 0 if there is nothing but zeros."""
    total = values.sum()
    if not float(total) > 0:
        return 0.0
    share = values / total + epsilon
    return float(torch.exp(-(share * share.log()).sum()))


def _second_moment(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "dim dim"]:
    return rows.T @ rows / len(rows)
