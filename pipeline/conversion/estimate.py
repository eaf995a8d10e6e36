"""Estimates from a sample of the images how many bytes a conversion will write, and checks that the disk has them."""

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
from pipeline.conversion.channels.store import stored
from pipeline.conversion.entries import Entries
from pipeline.conversion.rewrite import Options, shrunk_size
from pipeline.dataset.images import BadImage
from pipeline.dataset.inside.names import file_of
from pipeline.dataset.png_metadata import without_metadata
from pipeline.dataset.table import DatasetError

SAMPLE = 256  # images
PIXELS = 200_000_000  # decoded for the sample at most: a few seconds
ENCODING = 4  # encoding takes at least 4 times as long as decoding
LONGEST_FILE = 1 << 27  # bytes; the sample skips longer files
TABLE_BYTES = 64  # per row in the tables
RAW_GROWTH = 8  # pixels per encoded byte, if no image of the sample can be read


class Expected(NamedTuple):
    """Estimated bytes: of OUT, of an average image in it, and of additional disk space during conversion."""

    out: int
    image: float
    additional: int


def expect(entries: Entries, options: Options, part_bytes: int) -> Expected:
    """Bytes that the conversion of these entries needs; the same entries and options give the same estimate.

    For encoded images the sample gives the factor by which bytes grow or shrink; for raw pixels, the bytes per image.
    """
    sizes = stored_bytes(entries, np.arange(len(entries)))
    if options.format == "index":
        return Expected(TABLE_BYTES * len(sizes), TABLE_BYTES, 0)
    pairs = np.array(list(_sample(entries, options)), np.int64).reshape(-1, 2)
    before, after = (int(total) for total in pairs.sum(axis=0))
    if not before or not after:
        images = int(sizes.sum()) * (RAW_GROWTH if options.raw else 1)
    elif options.raw or options.pixels.native:
        images = int(after / len(pairs) * len(sizes))
    else:
        images = int(sizes.sum() * (after / before))
    margin = 1.02 if before == after else 1.1  # a sample is off by a few per cent
    image = max(1.0, images / len(sizes))
    if options.format != "beton":
        total = margin * (images + 2048 * len(sizes))  # headers, padding and labels
        return Expected(int(total), image + 2048, 0)
    page = page_size(int(pairs[:, 1].max(initial=1)))
    filled = max(1, int(page / image)) * image / page  # share of a page that blobs of the average size fill
    total = margin * images / min(1.0, filled) + 2 * PAGE + page + TABLE_BYTES * len(sizes)
    return Expected(int(total), image, min(part_bytes, images))  # parts are joined one at a time


def stored_bytes(entries: Entries, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Encoded bytes of each of these images, (n,) int64; 0 if its file is gone."""
    sizes, images = entries.length[rows], np.bincount(entries.file)
    for index in np.flatnonzero(sizes < 0).tolist():
        try:
            name = file_of(entries.files[entries.file[rows[index]]])
            sizes[index] = os.stat(entries.root / name).st_size // images[entries.file[rows[index]]]
        except OSError:
            sizes[index] = 0
    return sizes


def check_room(folder: Path, needed: int, patterns: tuple[str, ...], note: str = "") -> None:
    """Raise DatasetError if the disk of `folder` has no room for `needed` bytes, which include the files that a killed
    run left there (`patterns`)."""
    present = sum(path.stat().st_blocks * 512 for pattern in patterns for path in folder.glob(pattern))
    free = shutil.disk_usage(folder).free
    if needed - present > free:
        size, unit = (1e9, "GB") if needed >= 1e8 else (1e6, "MB")
        problem = f"needs about {needed / size:.1f} {unit}{note}, and {(free + present) / size:.1f} {unit} are free"
        raise DatasetError(f"OUT in {folder.parent}: {problem}; make room, give another disk or a smaller --short")


def _sample(entries: Entries, options: Options) -> Iterator[tuple[int, int]]:
    """Bytes before and after conversion of a fixed random sample of the images."""
    rows = np.argsort(np.random.Philox(key=0).random_raw(len(entries)), kind="stable")[:SAMPLE]
    pixels = 0
    for row in rows.tolist():
        try:
            if stored_bytes(entries, np.array([row]))[0] > LONGEST_FILE:
                continue
            data = entries.read([row])[0]
            height, width = (int(side) for side in entries.shape[row])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's warnings about broken metadata
                if options.pixels.native:
                    made = stored(data, (height, width), entries.pixels, options)
                    yield len(data), len(made.data)
                    pixels += ENCODING * made.width * made.height
                    if pixels > PIXELS:
                        return
                    continue
                if not width:
                    with Image.open(io.BytesIO(without_metadata(data))) as image:
                        width, height = image.size
                if options.raw:
                    yield len(data), 3 * int(np.prod(shrunk_size((width, height), options)))
                    continue
                pixels += width * height
                if pixels > PIXELS:
                    return
                made = stored(data, tuple(entries.shape[row].tolist()), entries.pixels, options)
                pixels += ENCODING * width * height * (made.data is not data)
                yield len(data), len(made.data)
        except (BadImage, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
