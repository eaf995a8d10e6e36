"""JPEGs in sizes like ImageNet's, or all of one size, made from the photographs of `perf/images.py`.

What is known of ImageNet's training set, and what the shares below were fitted to:

    bytes     138 GB in 1,281,167 files: 108 kB an image
    pixels    FFCV's table of its size as raw RGB, with longer sides cut to 256, 384, 512 and 1600 pixels: 170, 371, 616
              and 789 GB, so 44, 97, 160 and 205 thousand pixels an image
    coding    most files are of quality 96 and without chroma subsampling, as Flickr made its pictures of 500 pixels
              (terryalanunlimited.com, "Compression in the ImageNet Dataset"); others are taken for 4:2:0 at 85 here
    shapes    most are 500 pixels long, at 4:3 or 3:2; two in seven upright

The shares themselves are not published; these give 45, 96, 158 and 200 thousand pixels and 100 kB, with 1.5 % longer
than 1,024 pixels and the longest at 4,288. A batch that holds one waits for it, and the
rates of short turns scatter by it.
"""

from __future__ import annotations

import io
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from PIL import Image

GOLDEN = (5**0.5 - 1) / 2  # steps of this through [0, 1) spread evenly, however many there are


@dataclass(frozen=True)
class Stratum:
    """A share of the images, with their longer side (log-uniform) and shorter over longer side (uniform)."""

    share: float
    longer: tuple[int, int]
    ratio: tuple[float, float]


STRATA = (
    Stratum(0.390, (500, 500), (0.75, 0.75)),
    Stratum(0.190, (500, 500), (0.666, 0.668)),
    Stratum(0.065, (500, 500), (0.80, 1.00)),
    Stratum(0.030, (500, 500), (0.50, 0.65)),
    Stratum(0.210, (90, 499), (0.60, 1.00)),
    Stratum(0.030, (640, 640), (0.75, 0.75)),
    Stratum(0.058, (501, 1024), (0.62, 0.85)),
    Stratum(0.012, (1024, 1024), (0.75, 0.75)),
    Stratum(0.009, (1025, 1600), (0.62, 0.85)),
    Stratum(0.006, (1600, 4288), (0.66, 0.75)),
)
UPRIGHT = 2 / 7
SIZES = ((250, 188), (500, 375), (1600, 1200))  # width, height: of the sets whose images are all alike


def size_of(index: int) -> tuple[int, int]:
    """Width and height in pixels of image `index`. Any stretch of a hundred images has about the shares of STRATA."""
    ends = list(accumulate(stratum.share for stratum in STRATA))
    place = (0.5 + index * GOLDEN) % 1.0 * ends[-1]
    stratum = STRATA[min(bisect(ends, place), len(STRATA) - 1)]
    random = np.random.default_rng((index, 1))
    low, high = stratum.longer
    longer = round(low * (high / low) ** random.random())
    shorter = round(longer * random.uniform(*stratum.ratio))
    return (shorter, longer) if random.random() < UPRIGHT else (longer, shorter)


def imagenet_like(sources: list[Image.Image], index: int) -> bytes:
    """A random part of one of the photographs as a JPEG of ImageNet's sizes; which one is a function of `index`."""
    width, height = size_of(index)
    return encoded(part_of(sources, index, width, height), flickr=max(width, height) == 500)


def of_size(sources: list[Image.Image], index: int, width: int, height: int) -> bytes:
    """The same at one size, coded as ImageNet's pictures of that size are."""
    return encoded(part_of(sources, index, width, height), flickr=max(width, height) == 500)


def part_of(sources: list[Image.Image], index: int, width: int, height: int) -> Image.Image:
    """A random part of a photograph at this size: made smaller, or out of mirrored tiles where it is larger than the
    photograph, so that large images have details as fine as small ones."""
    random = np.random.default_rng((index, 2))
    source = sources[index % len(sources)]
    if width <= source.width and height <= source.height:
        largest = min(source.width / width, source.height / height)
        share = random.uniform(max(0.7, 1 / largest), 1.0)
        w, h = largest * width * share, largest * height * share
        left, top = random.uniform(0, source.width - w), random.uniform(0, source.height - h)
        return source.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    pixels = np.asarray(source)
    row = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    tile = np.concatenate([row, row[::-1]])
    rows = (random.integers(tile.shape[0]) + np.arange(height)) % tile.shape[0]
    columns = (random.integers(tile.shape[1]) + np.arange(width)) % tile.shape[1]
    return Image.fromarray(tile[rows][:, columns])


def encoded(image: Image.Image, flickr: bool) -> bytes:
    """As a JPEG: quality 96 without chroma subsampling, or 85 with it."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=96 if flickr else 85, subsampling=0 if flickr else 2)
    return out.getvalue()
