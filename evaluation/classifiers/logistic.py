"""Multinomial logistic regression on computed features: takes seconds, for small sets."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

PENALTIES = [10.0**power for power in range(-6, 0)]  # the first candidates
LEAST, MOST = 1e-12, 1e3  # limits: below, nothing is penalized; above, only the sizes of the classes count


def logistic_regression(
    features: Float[Tensor, "train dim"], labels: Int[Tensor, " train"], penalty: float, iterations: int = 1000
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Weights and bias that minimize the mean cross entropy + penalty / 2 * |weights|^2, by L-BFGS in float64.

    labels: from 0 to classes - 1.

    scikit-learn's LogisticRegression(C) minimizes the same with penalty = 1 / (C * len(features)).
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


def standardized(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both, scaled so that the training features have mean 0 and deviation 1; constant features become 0."""
    mean, deviation = train.mean(0), train.std(0, correction=min(1, len(train) - 1))
    deviation = torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))
    return (train - mean) / deviation, (test - mean) / deviation


def chosen_penalty(train: Tensor, labels: Tensor, penalties: list[float], every: int = 5) -> float:
    """The penalty with the best accuracy on a held-out part (one row in `every`) of the training set; of equals the
    largest, also where a single row leaves nothing to hold out. The test set is not used.

    penalties: candidates, ascending. While the smallest or largest is best, a ten times smaller or larger one is tried
    as well, within LEAST and MOST.
    """
    if len(train) < 2:
        return penalties[-1]
    held_out = torch.arange(len(train)) % every == 0

    def score(penalty: float) -> tuple[float, float]:
        weights, bias = logistic_regression(train[~held_out], labels[~held_out], penalty, iterations=200)
        predicted = (train[held_out].double() @ weights.T + bias).argmax(1)
        return float((predicted == labels[held_out]).double().mean()), penalty

    scores = [score(penalty) for penalty in penalties]
    while max(scores) == scores[0] and scores[0][1] > 1.5 * LEAST:
        scores.insert(0, score(scores[0][1] / 10))
    while max(scores) == scores[-1] and scores[-1][1] < MOST / 1.5:
        scores.append(score(scores[-1][1] * 10))
    return max(scores)[1]


def edge_note(penalty: float) -> str | None:
    """A note that the best penalty is at the edge of those tried, so that a better one may exist; None for others."""
    if 1.5 * LEAST < penalty < MOST / 1.5:
        return None
    return f"note: the best penalty, {penalty:g}, is at the edge of those tried ({LEAST:g} to {MOST:g})"


def best_regression(train: Tensor, test: Tensor, train_labels: Tensor, test_labels: Tensor) -> dict[str, float]:
    """Top-1 on the test features of a regression on the standardized training features, and its penalty."""
    train, test = standardized(train, test)
    penalty = chosen_penalty(train, train_labels, PENALTIES)
    weights, bias = logistic_regression(train, train_labels, penalty)
    predicted = (test.double() @ weights.T + bias).argmax(1)
    return {"linear top1": float((predicted == test_labels).double().mean()), "penalty": penalty}
