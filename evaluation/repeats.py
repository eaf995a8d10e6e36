"""Figures of several seeds or draws: their mean, and the 95 % interval of the mean by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# t(0.975) of 1 to 9 degrees of freedom, scipy.stats.t.ppf; from 10 on the expansion below is right to 1e-4.
QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
NORMAL = 1.959964  # 0.975 quantile of the normal distribution


def student_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t. freedom: degrees of freedom, 1 or more. (Cornish and Fisher's expansion:
    Abramowitz and Stegun, 26.7.5.)"""
    if freedom <= len(QUANTILES):
        return QUANTILES[freedom - 1]
    z = NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean: t * s / sqrt(n), s the sample's deviation; nan for one value."""
    count = len(values)
    if count < 2:
        return math.nan
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return student_quantile(count - 1) * deviation / math.sqrt(count)


def merged(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of several seeds as one: numbers become their mean, with half the width of the 95 % interval beside them
    in an entry `NAME ±`; lists of numbers, such as curves, become means by place. `by seed` keeps all.

    Entries that not every seed has, and texts, are those of the first seed.
    """
    if len(figures) == 1:
        return dict(figures[0])
    return _mean(figures) | {"by seed": [dict(one) for one in figures]}


def _mean(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for name, first in figures[0].items():
        values: list[Any] = [one.get(name) for one in figures]
        if all(isinstance(value, dict) for value in values):
            whole[name] = _mean(values)
        elif all(_is_number(value) for value in values):
            numbers = [float(value) for value in values]
            whole |= {name: sum(numbers) / len(numbers), f"{name} ±": half_width(numbers)}
        elif all(isinstance(value, list) and value and all(map(_is_number, value)) for value in values):
            columns = zip(*values, strict=False)
            whole[name] = [sum(column) / len(column) for column in columns]
        else:
            whole[name] = first
    return whole


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
