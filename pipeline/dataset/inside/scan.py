"""The sample table of HDF5 files. Images that lie in a file as they are, neither in shared chunks nor compressed, are
byte ranges of it; h5py reads the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.progress import progress_bar
from pipeline.dataset.channels.array_field import image_format
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.channels.samples import scanned_samples
from pipeline.dataset.channels.settle import AUTO, RGB
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.finding.labels import Label, class_names, numbered
from pipeline.dataset.folder import Listing, probe_encoded, probe_rows
from pipeline.dataset.inside.hdf5 import Held, contents_of, labels_of, opened
from pipeline.dataset.inside.names import ROWS, inside
from pipeline.dataset.records.pixels import of_shape
from pipeline.dataset.table import SampleTable


class Block(NamedTuple):
    """Images of a dataset. file, place: names; images: how many. ranges: see `Held`; bytes: of each image, -1 unless
    they are byte ranges. shape: format, height and width of images that are ranges of bare samples, None for others."""

    file: str
    place: str
    images: int
    ranges: NDArray[np.int64] | None
    bytes: int
    shape: tuple[PixelFormat, int, int] | None


def scan_hdf5(listed: tuple[Path, Listing], workers: int, progress: bool, choice: Choice, check: str) -> SampleTable:
    """The table of the images of these files (see `list_shards`); checks every image once, in `workers` processes.
    check: see `SampleTable`. Raises DatasetError."""
    root, listing = listed
    blocks: list[Block] = []
    labels: list[Label] = []
    left_out: Counter[str] = Counter()
    with progress_bar(None, "listing HDF5", "dataset", progress) as bar:
        for name in listing.names:
            blocks += _blocks(root, name, choice, labels, left_out, bar.update)
    classes = class_names(labels)
    formats = {block.shape and block.shape[0] for block in blocks}
    bare = formats.pop() if len(formats) == 1 else None
    if bare is None:  # samples become files in memory
        blocks = [block if block.shape is None else block._replace(ranges=None, bytes=-1) for block in blocks]
    places = [block.file if block.ranges is not None else inside(block.file, block.place) for block in blocks]
    names = list(dict.fromkeys(places))
    number = {name: index for index, name in enumerate(names)}
    counts = [block.images for block in blocks]
    container = np.repeat(np.array([number[place] for place in places], np.int32), counts)
    offset = np.concatenate([np.arange(b.images) if b.ranges is None else b.ranges for b in blocks]).astype(np.int64)
    length = np.repeat(np.array([block.bytes for block in blocks], np.int64), counts)
    columns: tuple[Path, list[str], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]
    columns = root, names, container, offset, length
    if bare is None:
        probes = probe_rows(*columns, workers, progress, check=check, choice=choice)
    else:
        sides = [np.repeat(np.array([b.shape[i] for b in blocks if b.shape], np.int32), counts) for i in (1, 2)]
        if bare == COLOR:
            probes = probe_encoded(*columns, np.stack(sides, axis=1), workers, progress, check, choice)
        else:
            probes = scanned_samples(*columns, (sides[1], sides[0]), bare, progress, check)
    return SampleTable(
        root, names, container, offset, label=numbered(labels, classes), classes=classes,
        fingerprint=listing.fingerprint(), left_out=dict(left_out), check=check, **probes._asdict(),
    )  # fmt: skip


def _blocks(
    root: Path, name: str, choice: Choice, labels: list[Label], left_out: Counter[str], seen: Callable[[], Any]
) -> Sequence[Block]:
    """The images of one file; adds their labels, and counts what is left out."""
    with opened(root / name) as file:
        contents = contents_of(file, name, choice, seen)
        labels += labels_of(file, name, contents)
    left_out.update(contents.left_out)
    if not contents.single:
        held = contents.held[contents.image]
        return [_block(name, contents.image + ROWS, held, held.shape[0], held.shape[1:], choice)]
    return [_block(name, key, held, 1, held.shape, choice) for key, held in contents.held.items()]


def _block(file: str, place: str, held: Held, images: int, shape: tuple[int, ...], choice: Choice) -> Block:
    ranges, about = held.ranges, None
    if images == 1 and ranges is not None and len(ranges) > 1:  # rows of one image
        ranges = ranges[:1] if len(np.unique(np.diff(ranges))) == 1 else None
    if not held.encoded:
        about = None if ranges is None else _bare(held.dtype, shape, choice)
        ranges = ranges if about else None
    return Block(file, place, images, ranges, held.bytes // images if ranges is not None else -1, about)


def _bare(dtype: np.dtype, shape: tuple[int, ...], choice: Choice) -> tuple[PixelFormat, int, int] | None:
    """Format, height and width of images whose samples are read as they stand in a file; None for others."""
    picture = of_shape(shape, planes_first=False) if dtype == np.uint8 else None
    if picture is not None and choice.channels in (AUTO, RGB):
        return (COLOR, picture.height, picture.width) if picture.order == "RGB" else None
    about = None if choice.channels == RGB else image_format(dtype, shape, choice.layout)
    return about if about and choice.channels in (AUTO, about[0].channels) else None
