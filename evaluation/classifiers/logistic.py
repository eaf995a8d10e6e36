"""Multinomial logistic regression on features that are there already: seconds, for small sets."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

PENALTIES = [10.0**power for power in range(-6, 0)]  # tried first
LEAST, MOST = 1e-12, 1e3  # tried at most: beyond them the regression is free, or sees nothing but the classes' sizes


def logistic_regression(
    features: Float[Tensor, "train dim"], labels: Int[Tensor, " train"], penalty: float, iterations: int = 1000
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Weights and bias that minimise the mean cross entropy + penalty / 2 * |weights|^2, by L-BFGS in float64.

    scikit-learn's LogisticRegression(C) minimises the same with penalty = 1 / (C * len(features)).
    """
    x, classes = features.double(), int(labels.max()) + 1
    weights = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=iterations, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(x @ weights.T + bias, labels) + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach(), bias.detach()


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the training features' mean 0 and deviation 1; what does not vary stays 0."""
    mean, deviation = train.mean(0), train.std(0)
    deviation = torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))
    return (train - mean) / deviation, (test - mean) / deviation


def chosen_penalty(train: Tensor, labels: Tensor, penalties: list[float], every: int = 5) -> float:
    """The penalty that classifies best a part (one row in `every`) held out of the training set; the larger of two
    alike. The test set has no say.

    penalties: ascending; while the best is the first or the last of them, ten times less or more is tried too, from
    LEAST to MOST.
    """
    held_out = torch.arange(len(train)) % every == 0

    def score(penalty: float) -> tuple[float, float]:
        weights, bias = logistic_regression(train[~held_out], labels[~held_out], penalty, iterations=200)
        found = (train[held_out].double() @ weights.T + bias).argmax(1)
        return float((found == labels[held_out]).double().mean()), penalty

    scores = [score(penalty) for penalty in penalties]
    while max(scores) == scores[0] and scores[0][1] > 1.5 * LEAST:
        scores.insert(0, score(scores[0][1] / 10))
    while max(scores) == scores[-1] and scores[-1][1] < MOST / 1.5:
        scores.append(score(scores[-1][1] * 10))
    return max(scores)[1]


def told_of_edge(penalty: float) -> str | None:
    """What to say of a penalty that may not be the best as nothing beyond it was tried, None of others."""
    if 1.5 * LEAST < penalty < MOST / 1.5:
        return None
    return f"note: the best penalty, {penalty:g}, lies at the edge of what is tried ({LEAST:g} to {MOST:g})"


def best_regression(train: Tensor, known: Tensor, test: Tensor, wanted: Tensor) -> dict[str, float]:
    """Top-1 of the test features by a regression on the standardised training features, and its penalty."""
    train, test = standardised(train, test)
    penalty = chosen_penalty(train, known, PENALTIES)
    weights, bias = logistic_regression(train, known, penalty)
    found = (test.double() @ weights.T + bias).argmax(1)
    return {"linear top1": float((found == wanted).double().mean()), "penalty": penalty}
