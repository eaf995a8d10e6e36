"""Photographs as cameras write them, made of the photographs in scikit-image and scikit-learn.

A part of one of them is enlarged (Lanczos) to 12 or 48 megapixels, and noise with a standard deviation of 3 levels is
added, as a sensor's. At quality 90 a photograph of 12 megapixels then has 1.5 MB on average.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from perf.images import make_jpegs

NOISE, QUALITY = 3, 90
TILE = 512  # pixels a side of the noise, which is repeated


@dataclass(frozen=True)
class Kind:
    """Photographs of width x height pixels in the file. subsampling: Pillow's, 0 is 4:4:4, 2 is 4:2:0."""

    width: int
    height: int
    subsampling: int = 2
    orientation: int = 1
    progressive: bool = False


KINDS = {
    "12 MP": Kind(4032, 3024),
    "12 MP, 4:4:4": Kind(4032, 3024, subsampling=0),
    "12 MP, turned by EXIF": Kind(4032, 3024, orientation=6),
    "12 MP, progressive": Kind(4032, 3024, progressive=True),
    "48 MP": Kind(8064, 6048),
}


def make_photographs(folder: Path, kind: Kind, count: int, threads: int = 1) -> Path:
    """Make the missing ones of `count` photographs in `folder`; the same on every machine. Returns `folder`. Raises
    ValueError if the packages with the photographs are not installed."""
    return make_jpegs(folder, count, threads, partial(photograph, kind=kind))


def photograph(sources: list[Image.Image], index: int, kind: Kind) -> bytes:
    """A photograph's JPEG bytes; `index` alone decides which part of which source it shows."""
    random = np.random.default_rng(index)
    source = sources[index % len(sources)]
    largest = min(source.width / kind.width, source.height / kind.height)
    w, h = (largest * side * random.uniform(0.85, 1.0) for side in (kind.width, kind.height))
    left, top = random.uniform(0, source.width - w), random.uniform(0, source.height - h)
    box = (left, top, left + w, top + h)
    pixels = np.asarray(source.resize((kind.width, kind.height), Image.Resampling.LANCZOS, box=box)).astype(np.int16)
    noise = np.rint(random.normal(0, NOISE, (TILE, TILE, 3))).astype(np.int16)
    pixels += np.tile(noise, (-(-kind.height // TILE), -(-kind.width // TILE), 1))[: kind.height, : kind.width]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = kind.orientation
    out = io.BytesIO()
    image.save(
        out, "JPEG", quality=QUALITY, subsampling=kind.subsampling, progressive=kind.progressive, exif=exif.tobytes()
    )
    return out.getvalue()
