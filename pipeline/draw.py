"""The draw: everything random about an image's crops, from a counter-based generator.

A random number is a function of (seed, epoch, sample row, view, purpose) alone; thread, rank, backend and call
order have no influence. Backends execute a draw and draw nothing themselves. The distributions are those of the
published recipe (SwAV, appendix A; torchvision's RandomResizedCrop and ColorJitter).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32

from pipeline.crops import Crops

ATTEMPTS = 10  # windows tried before the central one is taken, as torchvision does
FURTHER = 3 + ATTEMPTS  # the purposes of numbers after those of the windows: turns and tones,
CUSTOM = FURTHER + 1  # and the user's own changes,
GAINS = CUSTOM + 1  # and, from this one on, gains of four channels each
ORDERS = np.array(list(itertools.permutations(range(4))), dtype=np.uint8)  # of the four jitter steps

# Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)


def philox(counter: tuple[np.ndarray | int, ...], key: tuple[int, int]) -> UInt32[np.ndarray, "*shape 4"]:
    """Philox4x32-10: four random 32-bit words for each counter (four words, broadcast together) under one key."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HIGH) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HIGH) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


@dataclass(frozen=True)
class Draw:
    """The draw of B rows and V views. Windows are (top, left, height, width) in pixels of the image."""

    rows: Int[np.ndarray, " B"]
    window: Int[np.ndarray, "B V 4"]
    flip: Bool[np.ndarray, "B V"]
    jitter: Bool[np.ndarray, "B V"]
    factors: Float[np.ndarray, "B V 4"]  # brightness, contrast, saturation, hue (in turns)
    gains: Float[np.ndarray, "B V C"]  # of the channels, after these four; C may be 1 where no crop is changed
    order: UInt8[np.ndarray, "B V 4"]  # the four steps' indices in the order they are applied
    grayscale: Bool[np.ndarray, "B V"]
    blur: Bool[np.ndarray, "B V"]
    sigma: Float[np.ndarray, "B V"]  # pixels of the resized crop
    turns: UInt8[np.ndarray, "B V"]  # quarter turns counterclockwise, after the flip
    solarize: Bool[np.ndarray, "B V"]
    posterize: Bool[np.ndarray, "B V"]

    @property
    def oriented(self) -> tuple[Bool[np.ndarray, "B V"], Bool[np.ndarray, "B V"], Bool[np.ndarray, "B V"]]:
        """Flip and turns as a mirror image left to right, one top to bottom, and then an exchange of rows and columns:
        whether each happens."""
        return self.flip ^ np.isin(self.turns, (1, 2)), self.turns >= 2, self.turns % 2 == 1


def draw(crops: Crops, seed: int, epoch: int, rows: np.ndarray, height: np.ndarray, width: np.ndarray) -> Draw:
    """The draw of all crops of `rows` (B,), images of `height` x `width` (B,) pixels, in one vectorized pass."""
    row = np.asarray(rows, dtype=np.uint64)[:, None]
    view = np.arange(len(crops.views), dtype=np.uint64)[None, :]

    def uniform(purpose: int) -> Float[np.ndarray, "B V 4"]:
        """Four numbers in [0, 1) for each row and view."""
        words = philox((row & _LOW, row >> _HIGH, view, purpose), key=(seed, epoch))
        return words * 2.0**-32

    chance = uniform(0)
    strength = uniform(1)
    more = uniform(2)
    changes = crops.changes
    spread = np.array([[own.jitter.brightness, own.jitter.contrast, own.jitter.saturation] for own in changes])
    factors = np.empty((*chance.shape[:2], 4))
    factors[..., :3] = _about_one(spread, strength[..., :3])
    factors[..., 3] = (2.0 * strength[..., 3] - 1.0) * np.array([own.jitter.hue for own in changes])
    low, high = np.array([own.blur.sigma for own in changes]).T
    flip, turns, solarize, posterize = _further(crops, uniform, more[..., 2], chance[..., 0])
    return Draw(
        rows=np.asarray(rows, dtype=np.int64),
        window=_windows(crops, uniform, np.asarray(height)[:, None], np.asarray(width)[:, None]),
        flip=flip,
        jitter=chance[..., 1] < np.array([own.jitter.probability for own in changes]),
        factors=factors.astype(np.float32),
        gains=_gains(crops, uniform, len(row)),
        order=ORDERS[(more[..., 0] * len(ORDERS)).astype(np.int64)],
        grayscale=chance[..., 2] < np.array([own.grayscale for own in changes]),
        blur=chance[..., 3] < np.array([own.blur.probability for own in changes]),
        sigma=(low + more[..., 1] * (high - low)).astype(np.float32),
        turns=turns,
        solarize=solarize,
        posterize=posterize,
    )


def _about_one(strength: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Factors from 1 - strength, but not below 0, to 1 + strength."""
    lowest = np.maximum(0.0, 1.0 - strength)
    return lowest + u * (1.0 + strength - lowest)


def _gains(crops: Crops, uniform, rows: int) -> Float[np.ndarray, "B V C"]:
    strength = np.array([[own.jitter.gain] for own in crops.changes])
    channels = len(crops.mean)
    if not strength.any():
        return np.ones((rows, len(strength), channels), np.float32)
    u = np.concatenate([uniform(GAINS + part) for part in range((channels + 3) // 4)], axis=-1)
    return _about_one(strength, u[..., :channels]).astype(np.float32)


def _further(crops: Crops, uniform, which: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, ...]:
    """flip, turns, solarize and posterize of a Draw. chance: the number that decides the flip; which: the number that
    chooses one of three turns. A vertical flip is half a turn after another flip."""
    changes = crops.changes
    flip = chance < np.array([own.flip for own in changes])
    turns = np.zeros(flip.shape, np.uint8)
    if not any(own.turns or own.tones for own in changes):
        return flip, turns, np.zeros_like(flip), np.zeros_like(flip)
    u = uniform(FURTHER)
    upside = u[..., 0] < np.array([own.vertical_flip for own in changes])
    turned = u[..., 1] < np.array([own.quarter_turn for own in changes])
    turns[turned] = 1 + (which[turned] * 3).astype(np.uint8)
    solarize = u[..., 2] < np.array([own.solarize.probability for own in changes])
    posterize = u[..., 3] < np.array([own.posterize.probability for own in changes])
    return flip ^ upside, (turns + 2 * upside.astype(np.uint8)) % 4, solarize, posterize


def _windows(crops: Crops, uniform, height: np.ndarray, width: np.ndarray) -> Int[np.ndarray, "B V 4"]:
    """RandomResizedCrop's windows: ten attempts at (area, aspect ratio), then the central window."""
    smallest = np.array([view.scale[0] for view in crops.views])
    largest = np.array([view.scale[1] for view in crops.views])
    log_low, log_high = np.log(crops.ratio)
    shape = (height.shape[0], len(crops.views))
    height, width = np.broadcast_to(height, shape), np.broadcast_to(width, shape)
    window = _central_windows(crops, height, width)
    pending = np.ones(shape, dtype=bool)
    for attempt in range(ATTEMPTS):
        u = uniform(3 + attempt)
        area = height * width * (smallest + u[..., 0] * (largest - smallest))
        aspect = np.exp(log_low + u[..., 1] * (log_high - log_low))
        w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = pending & (w > 0) & (w <= width) & (h > 0) & (h <= height)
        top = (u[..., 2] * (height - h + 1)).astype(np.int64)
        left = (u[..., 3] * (width - w + 1)).astype(np.int64)
        window[fits] = np.stack([top, left, h, w], axis=-1)[fits]
        pending &= ~fits
        if not pending.any():
            break
    return window


def _central_windows(crops: Crops, height: np.ndarray, width: np.ndarray) -> Int[np.ndarray, "B V 4"]:
    """The largest central window within `crops.ratio`: the fallback where no attempt fits into the image."""
    low, high = crops.ratio
    aspect = width / height
    w = np.where(aspect > high, np.rint(height * high), width).astype(np.int64)
    h = np.where(aspect < low, np.rint(width / low), height).astype(np.int64)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=-1)


def center(crops: Crops, rows: np.ndarray, height: np.ndarray, width: np.ndarray) -> Draw:
    """The draw for evaluation, without chance: the central square of each image, unchanged.

    With one view of `scale` (s, s): the square's side is s times the shorter side, so that scale 0.875 is the
    usual Resize(256), CenterCrop(224).
    """
    share = np.array([view.scale[1] for view in crops.views])
    side = np.maximum(1, np.rint(np.minimum(height, width)[:, None] * share)).astype(np.int64)
    top, left = (height[:, None] - side) // 2, (width[:, None] - side) // 2
    return unchanged(rows, np.stack([top, left, side, side], axis=-1))


def uncolored(draw: Draw) -> Draw:
    """The draw's windows, flips and turns, without its color, blur and tones."""
    return replace(unchanged(draw.rows, draw.window), flip=draw.flip, turns=draw.turns)


def unchanged(rows: np.ndarray, window: Int[np.ndarray, "B V 4"]) -> Draw:
    """The draw of these windows without any change."""
    shape = window.shape[:2]
    never = np.zeros(shape, dtype=bool)
    return Draw(
        rows=np.asarray(rows, dtype=np.int64),
        window=window,
        flip=never,
        jitter=never,
        factors=np.broadcast_to(np.array([1, 1, 1, 0], dtype=np.float32), (*shape, 4)),
        gains=np.ones((*shape, 1), dtype=np.float32),
        order=np.broadcast_to(ORDERS[0], (*shape, 4)),
        grayscale=never,
        blur=never,
        sigma=np.zeros(shape, dtype=np.float32),
        turns=np.zeros(shape, dtype=np.uint8),
        solarize=never,
        posterize=never,
    )
