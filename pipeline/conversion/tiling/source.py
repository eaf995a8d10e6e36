"""Large images as a source of tiles, to be spooled: a task for some rows of tiles of an image.

A tile is called `slide-y00512-x01024`, by the row and the column of its first pixel.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.cli import note
from common.processes import in_processes
from common.progress import progress_bar
from pipeline.conversion.spool import NO_IMAGE, TAR_BYTES, Sample, SpoolSource
from pipeline.conversion.tiling.grid import Tiling, is_kept, starts
from pipeline.conversion.tiling.regions import open_scene
from pipeline.dataset.channels.settle import AUTO, RGB
from pipeline.dataset.finding.choice import PAGES, Choice
from pipeline.dataset.folder import Listing
from pipeline.dataset.images import BadImage
from pipeline.dataset.records.pixels import of_shape, to_png
from pipeline.dataset.table import DatasetError

TILES = 512  # of a task, about
ROWS = "#rows"  # in a task's text, between the file and the first and last row of tiles


class Seen(NamedTuple):
    """What the header of an image says: size, bytes of a pixel, whether it is more than 8-bit gray or RGB, and why it
    is not read."""

    height: int = 0
    width: int = 0
    pixel: int = 0
    native: bool = False
    reason: str = ""


def tile_source(
    root: Path, listing: Listing, tiling: Tiling, choice: Choice, workers: int, progress: bool
) -> SpoolSource:
    """The source of the tiles of these files below `root`. Raises DatasetError."""
    if choice.bands:
        raise DatasetError(f"data.bands={choice.bands}: no tiles of several files; convert them without --tile first")
    if choice.pages == PAGES:
        raise DatasetError("data.pages=images: no tiles of pages; convert them without --tile first")
    files = [root / name for name in listing.names]
    inputs, size, native, left_out = [], 0, False, Counter(listing.left_out)
    look = partial(_look, layout=choice.layout)
    with progress_bar(len(files), "reading headers", "img", progress) as bar:
        for file, seen in zip(files, in_processes(look, iter(files), 1), strict=True):
            bar.update()
            down, across = (starts(side, tiling) for side in (seen.height, seen.width))
            reason = seen.reason or ("" if down and across else "smaller than a tile")
            if reason:
                left_out[reason] += 1
                note(f"left out: {file.relative_to(root)} ({reason})")
                continue
            native |= seen.native
            rows = max(1, TILES // len(across))
            inputs += [f"{file}{ROWS}{row}-{min(row + rows, len(down))}" for row in range(0, len(down), rows)]
            size += len(down) * len(across) * (tiling.size**2 * seen.pixel + TAR_BYTES)
    if not inputs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no images"
        raise DatasetError(f"no tile of {tiling.size} x {tiling.size} pixels ({reasons}); give larger images")
    if native and choice.channels == RGB:
        raise DatasetError("data.channels=rgb: the images are more than 8-bit RGB, whose tiles keep it; leave it out")
    labels = {str(file): label for file, label in zip(files, listing.label.tolist(), strict=True)}
    as_arrays = native or choice.channels not in (AUTO, RGB)
    read = partial(tiles_of, root=str(root), labels=labels, tiling=tiling, layout=choice.layout, as_arrays=as_arrays)
    return SpoolSource("tiles", inputs, files, read, size, listing.classes, left_out=dict(left_out))


def tiles_of(
    text: str, root: str, labels: dict[str, int], tiling: Tiling, layout: str, as_arrays: bool
) -> Iterator[Sample]:
    """The kept tiles of some rows of tiles of an image; NO_IMAGE and the reason for one that cannot be read.
    as_arrays: .npy, else PNG. Raises DatasetError where a package is missing."""
    name, _, rows = text.rpartition(ROWS)
    first, last = map(int, rows.split("-"))
    encode: Callable[[NDArray], bytes] = _npy if as_arrays else _png
    scene, stem = open_scene(Path(name), layout), str(Path(name).relative_to(root).with_suffix(""))
    for top in starts(scene.height, tiling)[first:last]:
        for left in starts(scene.width, tiling):
            try:
                tile = scene.read(top, left, tiling.size)
                data = encode(tile) if is_kept(tile, tiling.keep) else None
            except BadImage as error:
                data = NO_IMAGE + error.reason.encode()
            if data is not None:
                yield Sample(f"{stem}-y{top:05d}-x{left:05d}", data, labels[name])


def _look(file: Path, layout: str) -> Seen:
    try:
        scene = open_scene(file, layout)
    except BadImage as error:
        return Seen(reason=error.reason)
    except OSError as error:
        return Seen(reason=error.strerror or "unreadable")
    picture = scene.dtype == np.uint8 and scene.channels in (1, 3, 4)
    return Seen(scene.height, scene.width, scene.channels * scene.dtype.itemsize, not picture)


def _npy(tile: NDArray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(tile))
    return stream.getvalue()


def _png(tile: NDArray) -> bytes:
    order = of_shape(tile.shape, planes_first=False)
    assert order is not None
    return to_png(tile.tobytes(), order)
