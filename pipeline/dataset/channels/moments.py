"""Mean, deviation and range of every channel of many images, exact and mergeable."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Of the pixels of some images, for each channel: their sum and the sum of their squares, and the range.

    The sums are rational numbers without rounding, so merged ones do not depend on the order or on the processes.
    """

    pixels: int
    total: tuple[Fraction, ...]
    squares: tuple[Fraction, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]

    @classmethod
    def of(cls, image: NDArray) -> Moments:
        """Of one image (H, W, C), uint8, uint16 or float32. The sums of float32 values are those of float64."""
        flat = image.reshape(-1, image.shape[2])
        wide = flat.astype(np.uint64 if flat.dtype.kind == "u" else np.float64)
        return cls(
            len(flat),
            tuple(map(Fraction, wide.sum(axis=0).tolist())),
            tuple(map(Fraction, (wide * wide).sum(axis=0).tolist())),
            tuple(flat.min(axis=0).astype(float).tolist()),
            tuple(flat.max(axis=0).astype(float).tolist()),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.pixels + other.pixels,
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
            tuple(map(min, self.lowest, other.lowest)),
            tuple(map(max, self.highest, other.highest)),
        )

    @property
    def mean(self) -> list[float]:
        """In float64, of each channel."""
        return [float(total / self.pixels) for total in self.total]

    @property
    def std(self) -> list[float]:
        """The standard deviation over all pixels, in float64, of each channel."""
        variances = (
            squares / self.pixels - (total / self.pixels) ** 2
            for total, squares in zip(self.total, self.squares, strict=True)
        )
        return [max(float(variance), 0.0) ** 0.5 for variance in variances]
