"""How many bytes a conversion will write, told from a sample of its images before it begins, and whether they fit."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from pipeline.conversion.beton_writer import PAGE, page_size
from pipeline.conversion.rewrite import Options, rewrite, shrunk_size
from pipeline.conversion.sources import Entries
from pipeline.dataset.images import BadImage
from pipeline.dataset.table import DatasetError

SAMPLE = 256  # images
PIXELS = 200_000_000  # of the sample that are decoded at most: a few seconds
ENCODING = 4  # times as long as decoding, or longer
LONGEST_FILE = 1 << 27  # bytes: longer ones are not read for the sample
TABLE_BYTES = 64  # of a row in the tables
RAW_GROWTH = 8  # pixels over encoded bytes, where no image of the sample can be read


class Expected(NamedTuple):
    """About how many bytes OUT takes, an image of it on the average, and the disk beyond OUT while it is made."""

    out: int
    image: float
    beyond: int


def expect(entries: Entries, options: Options, part_bytes: int) -> Expected:
    """What the conversion of these entries takes; the same for the same entries and options.

    Of encoded images the sample tells by what factor they grow or shrink; of raw pixels, how many bytes one has.
    """
    sizes = stored_bytes(entries)
    if options.format == "index":
        return Expected(TABLE_BYTES * len(sizes), TABLE_BYTES, 0)
    pairs = np.array(list(_sample(entries, options)), np.int64).reshape(-1, 2)
    before, after = (int(total) for total in pairs.sum(axis=0))
    if not before or not after:
        images = int(sizes.sum()) * (RAW_GROWTH if options.raw else 1)
    elif options.raw:
        images = int(after / len(pairs) * len(sizes))
    else:
        images = int(sizes.sum() * (after / before))
    margin = 1.02 if before == after else 1.1  # a sample is off by some per cent
    image = max(1.0, images / len(sizes))
    if options.format == "wds":
        total = margin * (images + 2048 * len(sizes))  # headers, padding and labels
        return Expected(int(total), image + 2048, 0)
    page = page_size(int(pairs[:, 1].max(initial=1)))
    filled = max(1, int(page / image)) * image / page  # of a page, if all images were as large as this one
    total = margin * images / min(1.0, filled) + 2 * PAGE + page + TABLE_BYTES * len(sizes)
    return Expected(int(total), image, min(part_bytes, images))  # parts are joined one at a time


def stored_bytes(entries: Entries) -> Int64[np.ndarray, " n"]:
    """The encoded bytes of each image; 0 where its file is gone."""
    sizes = entries.length.copy()
    for row in np.flatnonzero(sizes < 0).tolist():
        try:
            sizes[row] = os.stat(entries.root / entries.files[entries.file[row]]).st_size
        except OSError:
            sizes[row] = 0
    return sizes


def check_room(folder: Path, needed: int, there: tuple[str, ...], what: str = "") -> None:
    """Raise DatasetError if `needed` bytes do not fit beside what a killed run left of them (`there`: patterns)."""
    left = sum(path.stat().st_blocks * 512 for pattern in there for path in folder.glob(pattern))
    free = shutil.disk_usage(folder).free
    if needed - left > free:
        told = f"needs about {needed / 1e9:.1f} GB{what}, and {(free + left) / 1e9:.1f} GB are free"
        raise DatasetError(f"OUT in {folder.parent}: {told}; make room, give another disk or a smaller --short")


def _sample(entries: Entries, options: Options) -> Iterator[tuple[int, int]]:
    """Bytes before and after of some of the images, spread at random but always alike."""
    rows = np.argsort(np.random.Philox(key=0).random_raw(len(entries)), kind="stable")[:SAMPLE]
    pixels = 0
    for row in rows.tolist():
        try:
            path = entries.root / entries.files[entries.file[row]]
            if (entries.length[row] if entries.length[row] >= 0 else os.stat(path).st_size) > LONGEST_FILE:
                continue
            data = entries.read([row])[0]
            height, width = (int(side) for side in entries.shape[row])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on broken metadata
                if not width:
                    with Image.open(io.BytesIO(data)) as image:
                        width, height = image.size
                if options.raw:
                    yield len(data), 3 * int(np.prod(shrunk_size((width, height), options)))
                    continue
                pixels += width * height
                if pixels > PIXELS:
                    return
                stored = rewrite(data, tuple(entries.shape[row].tolist()), options).data
                pixels += ENCODING * width * height * (stored is not data)
                yield len(data), len(stored)
        except (BadImage, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
