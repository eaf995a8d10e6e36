"""Trains one linear SVM per class on frozen features, by the protocol of VOC07 (Goyal et al., ICCV 2019).

Features are L2-normalized, the loss is squared hinge, positives count double. Each class gets the cost with the best
mean average precision in cross validation on the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Fitted:
    """scores: decision values (test, classes); nan for classes of other processes, and for classes without positive or
    without negative examples. costs: the chosen cost of each class."""

    scores: np.ndarray
    costs: list[float | None]


def fit_classes(
    train: Float[np.ndarray, "train features"],
    targets: Int[np.ndarray, "train classes"],
    test: Float[np.ndarray, "test features"],
    costs: Sequence[float],
    folds: int,
    threads: int,
    mine: Sequence[int],
    bar: Any,
) -> Fitted:
    """Train machines for the classes `mine`, in threads. targets: 1, -1, or 0 for an image that does not count."""
    scores = np.full((len(test), targets.shape[1]), np.nan)
    chosen: list[float | None] = [None] * targets.shape[1]

    def fit(index: int) -> None:
        counted = targets[:, index] != 0
        fitted = fit_class(train[counted], targets[counted, index], test, costs, folds)
        if fitted is not None:
            scores[:, index], chosen[index] = fitted
        bar.update()

    with ThreadPoolExecutor(max(1, threads)) as pool:  # liblinear releases the interpreter lock
        list(pool.map(fit, mine))
    return Fitted(scores, chosen)


def fit_class(
    train: np.ndarray, targets: np.ndarray, test: np.ndarray, costs: Sequence[float], folds: int
) -> tuple[np.ndarray, float] | None:
    """Decision values of `test` and the chosen cost; None without positive or without negative examples.

    There are at most as many folds as examples of either kind. With a single fold or cost there is no cross validation,
    and the middle one of the costs is taken.
    """
    positives = int((targets > 0).sum())
    if not 0 < positives < len(targets):
        return None
    folds = min(folds, positives, len(targets) - positives)
    cost = costs[len(costs) // 2]
    if len(costs) > 1 and folds > 1:
        cost = max(costs, key=lambda value: (_validated(train, targets, value, folds), -value))
    return _machine(cost).fit(train, targets).decision_function(test), cost


def _validated(train: np.ndarray, targets: np.ndarray, cost: float, folds: int) -> float:
    from sklearn.model_selection import StratifiedKFold

    precisions = []
    for learned, held_out in StratifiedKFold(folds).split(train, targets):
        scores = _machine(cost).fit(train[learned], targets[learned]).decision_function(train[held_out])
        precisions.append(average_precision(scores, targets[held_out]))
    return float(np.mean(precisions))


def _machine(cost: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual="auto", max_iter=2000, random_state=0)


def precision_and_recall(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall down the ranking, one value per distinct score. targets: 1, -1, or 0 for images that do not
    count."""
    scores, right = scores[targets != 0], targets[targets != 0] > 0
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(right[order])[ends]
    return hits / (ends + 1), hits / max(1, right.sum())


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Area under precision over recall, as steps (scikit-learn's average_precision_score)."""
    precision, recall = precision_and_recall(scores, targets)
    return float((np.diff(recall, prepend=0) * precision).sum())


def eleven_points(scores: np.ndarray, targets: np.ndarray) -> float:
    """VOC 2007's measure: the mean over recall 0, 0.1, ..., 1 of the best precision at that recall or more."""
    precision, recall = precision_and_recall(scores, targets)
    best = [precision[recall >= level - 1e-12].max(initial=0) for level in np.linspace(0, 1, 11)]
    return float(np.mean(best))
