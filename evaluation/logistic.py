"""Multinomial logistic regression on features that are there already: seconds, for small sets."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

PENALTIES = [10.0**power for power in range(-6, 0)]


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
    alike. The test set has no say."""
    held_out = torch.arange(len(train)) % every == 0
    best = (-1.0, 0.0)
    for penalty in penalties:
        weights, bias = logistic_regression(train[~held_out], labels[~held_out], penalty, iterations=200)
        found = (train[held_out].double() @ weights.T + bias).argmax(1)
        best = max(best, (float((found == labels[held_out]).double().mean()), penalty))
    return best[1]


def best_regression(train: Tensor, known: Tensor, test: Tensor, wanted: Tensor) -> dict[str, float]:
    """Top-1 of the test features by a regression on the standardised training features, and its penalty."""
    train, test = standardised(train, test)
    penalty = chosen_penalty(train, known, PENALTIES)
    weights, bias = logistic_regression(train, known, penalty)
    found = (test.double() @ weights.T + bias).argmax(1)
    return {"linear top1": float((found == wanted).double().mean()), "penalty": penalty}
