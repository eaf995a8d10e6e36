"""Near-duplicates among pictures, and a split into training and test that does not part them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from PIL import Image

SIDE, LOW = 32, 8  # pixels of the gray picture that is hashed, and of its lowest frequencies
NEAR = 6  # bits of the 64 in which near-duplicates differ at most
TEST_PARTS = 5  # one group in so many is for the test
LARGEST_TESTED = 20  # pictures: a larger group (950 stars that a program drew) would be most of its class


def perceptual_hash(picture: Image.Image) -> Bool[NDArray, " 64"]:
    """Which of the 8 x 8 lowest frequencies of the gray picture, by the discrete cosine transform, are above their
    median ("pHash"; Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010)."""
    gray = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64)
    waves = np.cos(np.pi / SIDE * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5))  # of a DCT-II, not normalized
    frequencies = (waves @ gray @ waves.T).ravel()
    return frequencies > np.median(frequencies)


def groups_of(hashes: Bool[NDArray, "n 64"], given: Sequence[int]) -> Int[NDArray, " n"]:
    """The group of each picture, named by the position of its first member. Pictures are in one group if a chain of
    near-duplicates joins them, or if `given` has the same number for them."""
    signs, groups = np.where(hashes, 1, -1).astype(np.float32), np.unique(given, return_inverse=True)[1]
    pairs = [np.stack([np.arange(len(groups)), np.unique(given, return_index=True)[1][groups]])]
    for start in range(0, len(signs), 1024):
        one, other = np.nonzero(signs[start : start + 1024] @ signs.T >= 64 - 2 * NEAR)
        pairs.append(np.stack([one + start, other]))
    one, other = np.concatenate(pairs, axis=1)
    first = np.arange(len(signs))
    while True:  # each picture takes the first of the pictures that it is joined to, until nothing changes
        before = first.copy()
        np.minimum.at(first, one, before[other])
        np.minimum.at(first, other, before[one])
        first = first[first]
        if np.array_equal(first, before):
            return first


def for_test(groups: Int[NDArray, " n"], names: Sequence[str]) -> Bool[NDArray, " n"]:
    """Which pictures are for the test: about a fifth of the groups, by a hash of the first member's name. So the split
    does not depend on an order or on other groups."""
    sizes = np.bincount(groups, minlength=len(groups))
    drawn = [hashlib.sha256(name.encode()).digest()[0] % TEST_PARTS == 0 for name in names]
    return np.array(drawn)[groups] & (sizes[groups] <= LARGEST_TESTED)
