"""Confusion matrix and mean intersection over union (Jaccard index) over all pixels of all images."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

IGNORED = 255  # in a mask: the pixel does not count


def confusion(
    expected: Int[np.ndarray, "*pixels"], predicted: Int[np.ndarray, "*pixels"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Numbers of pixels by expected (row) and predicted (column) class; IGNORED ones are left out."""
    counted = expected != IGNORED
    pairs = expected[counted].astype(np.int64) * classes + predicted[counted].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def scores(matrix: Int[np.ndarray, "classes classes"]) -> dict[str, Any]:
    """`mIoU`: mean over classes of intersection / union, accumulated over all images, Pascal VOC's measure (Everingham
    et al., IJCV 2015); `pixel accuracy`; and `IoU` of each class, nan and left out of the mean where a class is neither
    expected nor predicted."""
    right, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    each = np.where(union > 0, right / np.maximum(union, 1), np.nan)
    known = each[np.isfinite(each)]
    return {
        "mIoU": float(known.mean()) if len(known) else 0.0,
        "pixel accuracy": float(right.sum() / max(matrix.sum(), 1)),
        "classes": [{"class": index, "IoU": float(one)} for index, one in enumerate(each) if np.isfinite(one)],
    }
