"""The pixels of a conversion's OUT: those of most images of a sample of the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.conversion.channels.store import array_of
from pipeline.conversion.entries import Entries
from pipeline.conversion.estimate import stored_bytes
from pipeline.conversion.rewrite import LARGEST_BLOB, Options, shrunk_size
from pipeline.dataset.channels.decode import is_deep
from pipeline.dataset.channels.format import COLOR, PixelFormat, words
from pipeline.dataset.channels.settle import AUTO, RGB
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.images import BadImage
from pipeline.dataset.table import DatasetError

SAMPLE = 128  # images
BYTES = 1 << 28  # of decoded images, after which no more are taken: some seconds


def kind_of(entries: Entries, options: Options, choice: Choice) -> tuple[PixelFormat, tuple[int, int] | None]:
    """The pixels of OUT, and for a .beton, whose arrays have one size, the height and width of every image.

    'auto' keeps channels and depth if most images of a fixed random sample are more than 8-bit RGB shows, as training
    does; OUT then has the most frequent kind. Raises DatasetError for what OUT cannot hold.
    """
    if choice.channels == RGB:
        return COLOR, None
    layout = choice.layout if entries.pixels.layout == AUTO else entries.pixels.layout
    found: Counter[tuple[int, str]] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    pictures = 0
    for array in _sample(entries, choice, layout):
        if array is None:
            pictures += 1
        elif choice.channels in (AUTO, array.shape[2]):
            found[array.shape[2], str(array.dtype)] += 1
            width, height = shrunk_size((array.shape[1], array.shape[0]), options)
            sizes[height, width] += 1
    if not found and choice.channels != AUTO:
        problem = f"no image of a sample has {choice.channels} channels"
        raise DatasetError(f"--channels={choice.channels}: {problem}; leave it out")
    if sum(found.values()) <= pictures:
        return COLOR, None
    kind = max(found, key=lambda one: (found[one], one))
    what = f"images of {words(*kind)}"
    if options.format in ("tfrecord", "recordio"):
        raise DatasetError(
            f"--format={options.format}: it holds pictures, no {what}; give wds, beton or --channels rgb"
        )
    if options.quality is not None:
        raise DatasetError(f"--quality={options.quality}: {what} are stored as numbers; leave it out")
    if options.format != "beton":
        return PixelFormat(*kind, layout, native=True), None
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for (height, width), _ in sizes.most_common(3))
        problem = f"the arrays of a .beton have one size, and there are images of {shown}"
        raise DatasetError(f"--format=beton: {problem}; give wds, or tiles of one size by --tile")
    return PixelFormat(*kind, layout, native=True), next(iter(sizes))


def _sample(entries: Entries, choice: Choice, layout: str) -> Iterator[NDArray | None]:
    """Images with their own channels; with 'auto' None for a picture that 8-bit RGB shows. Bad ones are left out."""
    rows = np.argsort(np.random.Philox(key=0).random_raw(len(entries)), kind="stable")[:SAMPLE]
    decoded, sizes = 0, stored_bytes(entries, rows)
    for row in rows[sizes <= LARGEST_BLOB].tolist():
        try:
            data = entries.read([row])[0]
            shape = tuple(entries.shape[row].tolist())
            if choice.channels == AUTO and not entries.pixels.native and (any(shape) or not is_deep(data)):
                yield None
                continue
            array = array_of(data, shape, entries.pixels, layout)
        except (BadImage, OSError):
            continue
        yield array
        decoded += array.nbytes
        if decoded > BYTES:
            return
