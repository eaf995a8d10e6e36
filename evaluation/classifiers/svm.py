"""One linear support vector machine per class on frozen features, as VOC07 is scored (Goyal et al., ICCV 2019).

Features are L2-normalised; squared hinge loss; positives count double; each class's cost is the one of the best mean
average precision in cross validation on the images to learn from.
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
    """scores: decision values of the images to score, (test, classes), nan for classes of other processes or without
    both kinds of examples. costs: chosen for each class."""

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
    """Machines for the classes `mine`, in threads. targets: 1, -1, or 0 for an image that does not count there."""
    scores = np.full((len(test), targets.shape[1]), np.nan)
    chosen: list[float | None] = [None] * targets.shape[1]

    def fit(index: int) -> None:
        counted = targets[:, index] != 0
        found = fit_class(train[counted], targets[counted, index], test, costs, folds)
        if found is not None:
            scores[:, index], chosen[index] = found
        bar.update()

    with ThreadPoolExecutor(max(1, threads)) as pool:  # liblinear lets go of the interpreter
        list(pool.map(fit, mine))
    return Fitted(scores, chosen)


def fit_class(
    train: np.ndarray, wanted: np.ndarray, test: np.ndarray, costs: Sequence[float], folds: int
) -> tuple[np.ndarray, float] | None:
    """Decision values of `test` and the cost that was chosen; None without an example of both kinds. Fewer folds where
    there are fewer examples than folds, none for a single one or a single cost: then the middle of the costs."""
    positives = int((wanted > 0).sum())
    if not 0 < positives < len(wanted):
        return None
    folds = min(folds, positives, len(wanted) - positives)
    cost = costs[len(costs) // 2]
    if len(costs) > 1 and folds > 1:
        cost = max(costs, key=lambda value: (_validated(train, wanted, value, folds), -value))
    return _machine(cost).fit(train, wanted).decision_function(test), cost


def _validated(train: np.ndarray, wanted: np.ndarray, cost: float, folds: int) -> float:
    from sklearn.model_selection import StratifiedKFold

    found = []
    for learnt, held_out in StratifiedKFold(folds).split(train, wanted):
        scores = _machine(cost).fit(train[learnt], wanted[learnt]).decision_function(train[held_out])
        found.append(average_precision(scores, wanted[held_out]))
    return float(np.mean(found))


def _machine(cost: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual="auto", max_iter=2000, random_state=0)


def precision_and_recall(scores: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Down the ranking, one value for each different score. wanted: 1 and -1, or 0 for what does not count."""
    scores, right = scores[wanted != 0], wanted[wanted != 0] > 0
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(right[order])[ends]
    return hits / (ends + 1), hits / max(1, right.sum())


def average_precision(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Area under precision over recall, as steps (scikit-learn's average_precision_score)."""
    precision, recall = precision_and_recall(scores, wanted)
    return float((np.diff(recall, prepend=0) * precision).sum())


def eleven_points(scores: np.ndarray, wanted: np.ndarray) -> float:
    """VOC 2007's own: the mean over recall 0, 0.1, ..., 1 of the best precision at that recall or more."""
    precision, recall = precision_and_recall(scores, wanted)
    best = [precision[recall >= level - 1e-12].max(initial=0) for level in np.linspace(0, 1, 11)]
    return float(np.mean(best))
