"""JPEGs with the sizes of ImageNet's images, or all of one size, made from the photographs of `perf/images.py`.

The shares below are fitted to these facts about ImageNet's training set:

    bytes     138 GB in 1,281,167 files: 108 kB an image
    pixels    170, 371, 616 and 789 GB as raw RGB with longer sides cut to 256, 384, 512 and 1600 pixels (a table of
              FFCV), so 44, 97, 160 and 205 thousand pixels an image
    coding    most files have quality 96 without chroma subsampling, as Flickr coded its pictures of 500 pixels
              (terryalanunlimited.com, "Compression in the ImageNet Dataset"); the others have 4:2:0 at 85 here
    shapes    most are 500 pixels long, at 4:3 or 3:2; two in seven are upright

The shares of the sizes are not published. The ones below give 45, 96, 158 and 200 thousand pixels and 100 kB; 1.5 % of
the images are longer than 1,024 pixels, the longest has 4,288. A batch waits for its largest image, so the rates of
short turns vary.
"""

from __future__ import annotations

import io
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from PIL import Image

GOLDEN = (5**0.5 - 1) / 2  # any number of steps of this size spreads evenly over [0, 1)


@dataclass(frozen=True)
class Stratum:
    """A share of the images. longer: range of the longer side, log-uniform; ratio: of shorter / longer, uniform."""

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
SIZES = ((250, 188), (500, 375), (1600, 1200))  # width, height; a set of images has only one of these sizes


def size_of(index: int) -> tuple[int, int]:
    """Width and height in pixels of image `index`. Any hundred successive images have about the shares of STRATA."""
    ends = list(accumulate(stratum.share for stratum in STRATA))
    point = (0.5 + index * GOLDEN) % 1.0 * ends[-1]
    stratum = STRATA[min(bisect(ends, point), len(STRATA) - 1)]
    random = np.random.default_rng((index, 1))
    low, high = stratum.longer
    longer = round(low * (high / low) ** random.random())
    shorter = round(longer * random.uniform(*stratum.ratio))
    return (shorter, longer) if random.random() < UPRIGHT else (longer, shorter)


def imagenet_like(sources: list[Image.Image], index: int) -> bytes:
    """A random part of a photograph as a JPEG with the size of `index`, which also decides the part."""
    width, height = size_of(index)
    return encoded(part_of(sources, index, width, height), flickr=max(width, height) == 500)


def of_size(sources: list[Image.Image], index: int, width: int, height: int) -> bytes:
    """A random part of a photograph at this size, coded as ImageNet's images of the size."""
    return encoded(part_of(sources, index, width, height), flickr=max(width, height) == 500)


def part_of(sources: list[Image.Image], index: int, width: int, height: int) -> Image.Image:
    """A random part of a photograph, scaled down to this size; for a larger size, mirrored tiles of the photograph.

    So large images have details as fine as small ones. `index` decides the photograph and the part.
    """
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
    """JPEG bytes: of quality 96 without chroma subsampling (flickr), or of 85 with it."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=96 if flickr else 85, subsampling=0 if flickr else 2)
    return out.getvalue()
