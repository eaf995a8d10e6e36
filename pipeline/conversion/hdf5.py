"""HDF5 files to be spooled, see `pipeline.dataset.inside.hdf5`: read in the order of their rows, each block once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.conversion.spool import NO_IMAGE, TAR_BYTES, Sample, SpoolSource
from pipeline.dataset.channels.arrays import with_channels_last
from pipeline.dataset.finding.choice import NOT_CHOSEN, Choice
from pipeline.dataset.finding.labels import Label, class_names, numbering
from pipeline.dataset.images import BadImage
from pipeline.dataset.inside.hdf5 import LOOKED_AT, Contents, as_file, bytes_in, contents_of, damaged, labels_of, opened

ROWS = 64  # that are read at a time


def hdf5_source(files: Sequence[Path], choice: Choice = NOT_CHOSEN) -> SpoolSource:
    """The source of these files. Raises DatasetError, e.g. if it is not clear which of their arrays are the images."""
    labels: list[Label] = []
    left_out: Counter[str] = Counter()
    size = 0
    for path in files:
        with opened(path) as file:
            contents = contents_of(file, path.name, choice)
            labels += labels_of(file, path.name, contents)
            size += _bytes(file, contents)
            left_out.update(contents.left_out)
    classes = class_names(labels)
    read = partial(samples, choice=choice, classes=classes)
    size += TAR_BYTES * len(labels)
    return SpoolSource("hdf5", [str(path) for path in files], files, read, size, classes, left_out=dict(left_out))


def samples(path: str, choice: Choice, classes: tuple[str, ...]) -> Iterator[Sample]:
    """The images of one file, in order. Raises DatasetError."""
    name, number_of = Path(path), numbering(classes)
    with opened(name) as file:
        contents = contents_of(file, name.name, choice)
        labels = labels_of(file, name.name, contents)
        keys = contents.single or [f"{name.stem}-{row:08d}" for row in range(len(labels))]
        values = (file[key][()] for key in contents.single) if contents.single else _rows(file[contents.image])
        try:
            for key, value, label in zip(keys, values, labels, strict=True):
                stem = key.rpartition(".")[0] if contents.single and "." in key else key
                yield Sample(stem, _stored(value, choice.layout), number_of(label))
        except OSError as error:  # of a damaged block
            raise damaged(name, error) from None


def _bytes(file: Any, contents: Contents) -> int:
    """Of all images, estimated by the first ones where their lengths differ."""
    array = contents.held.get(contents.image)
    if array is None or array.dtype.kind != "O":
        return sum(held.bytes for held in contents.held.values())
    return sum(len(bytes_in(value)) for value in file[contents.image][:LOOKED_AT]) * array.shape[0] // LOOKED_AT


def _rows(array: Any) -> Iterator[Any]:
    for first in range(0, len(array), ROWS):
        yield from array[first : first + ROWS]


def _stored(value: Any, layout: str) -> bytes:
    """The image as a file whose channels are last; NO_IMAGE and the reason if it is none."""
    try:
        is_array = isinstance(value, np.ndarray) and value.ndim > 1
        return as_file(with_channels_last(value, layout) if is_array else value)
    except BadImage as error:
        return NO_IMAGE + error.reason.encode()
