"""Colour jitter and grayscale as one affine map per crop.

Brightness, contrast about the crop's mean gray, saturation, hue (a rotation of the YIQ chroma plane) and
grayscale are all linear in a pixel x and in the crop's mean colour m, so any order of them composes to
x' = A x + B m with two 3x3 matrices that are known before a pixel is read. Two differences from
torchvision, both measured in tests/test_backends.py: no clipping between the steps, and hue in YIQ, not HSV.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from pipeline.draw import Draw

GRAY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma, as PIL and torchvision weigh
RGB_TO_YIQ = np.array([GRAY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)
LUMA = np.broadcast_to(GRAY, (3, 3))  # maps a colour to its gray
IDENTITY = np.eye(3)


def color_matrices(draw: Draw) -> tuple[Float[np.ndarray, "B V 3 3"], Float[np.ndarray, "B V 3 3"]]:
    """(A, B) float32 for each crop, with x' = A x + B m: x in [0, 255], m the mean colour of the resized crop."""
    shape = draw.jitter.shape
    linear = np.broadcast_to(IDENTITY, (*shape, 3, 3)).copy().reshape(-1, 3, 3)
    mean = np.zeros_like(linear)
    active = np.flatnonzero(draw.jitter)
    if len(active):
        linear[active], mean[active] = _jitter(draw.factors.reshape(-1, 4)[active], draw.order.reshape(-1, 4)[active])
    gray = draw.grayscale.reshape(-1)
    linear[gray], mean[gray] = LUMA @ linear[gray], LUMA @ mean[gray]
    return (
        linear.reshape(*shape, 3, 3).astype(np.float32),
        mean.reshape(*shape, 3, 3).astype(np.float32),
    )


def _jitter(factors: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The four steps of n crops composed in each crop's own order: (A, B), both (n, 3, 3) float64."""
    brightness, contrast, saturation = (factors[:, i, None, None].astype(np.float64) for i in range(3))
    steps = np.stack(
        [
            brightness * IDENTITY,
            contrast * IDENTITY,
            saturation * IDENTITY + (1 - saturation) * LUMA,
            _hue(factors[:, 3].astype(np.float64)),
        ],
        axis=1,
    )
    everyone = np.arange(len(factors))
    linear = np.broadcast_to(IDENTITY, (len(factors), 3, 3)).copy()
    mean = np.zeros_like(linear)
    for position in range(4):
        step = order[:, position]
        # contrast blends with the gray of the mean colour as it is at this point: (A + B) m
        blend = np.where(step[:, None, None] == 1, (1 - contrast) * (LUMA @ (linear + mean)), 0.0)
        chosen = steps[everyone, step]
        linear, mean = chosen @ linear, chosen @ mean + blend
    return linear, mean


def _hue(turns: np.ndarray) -> np.ndarray:
    """Rotation of hue by `turns` (n,) of a full circle: (n, 3, 3). Positive turns go red -> green, as in HSV."""
    angle = 2 * np.pi * turns
    rotation = np.zeros((len(turns), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 1, 2] = np.sin(angle)
    rotation[:, 2, 1] = -np.sin(angle)
    return YIQ_TO_RGB @ rotation @ RGB_TO_YIQ
