"""HDF5 files, to be spooled: arrays of images, arrays of encoded images, and solo-learn's dataset for each image.

images (N, h, w), (N, h, w, c) or (N, c, h, w) | images (N,) bytes of files | class/name (bytes,) uint8 or (h, w, c)

Pixels of 8-bit gray, RGB or RGBA become PNGs, of other channels and types .npy. A label is a dataset of the same length
beside the images: numbers or text. Needs h5py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.conversion.spool import TAR_BYTES, Sample, SpoolSource
from pipeline.dataset.channels.arrays import with_channels_last
from pipeline.dataset.channels.settle import AUTO, RGB
from pipeline.dataset.finding.choice import NOT_CHOSEN, Choice, chosen_image, chosen_label
from pipeline.dataset.finding.labels import Label, class_names, label_of, numbering
from pipeline.dataset.finding.layout import are_splits
from pipeline.dataset.images import BadImage
from pipeline.dataset.records.pixels import of_shape, to_png
from pipeline.dataset.sniff import looks_like_image
from pipeline.dataset.table import DatasetError

LOOKED_AT = 8  # values that say whether an array holds encoded images
ROWS = 64  # that are read at a time
MOST_BANDS = 64  # of an image that is a dataset of its own: more are rows


class Contents(NamedTuple):
    """What is read of a file. image: name of the array of images, '' if each image is a dataset; label: name of the
    array of labels, '' without; single: names of the datasets that are an image each; bytes: of all images; native:
    whether their pixels have more than 8-bit RGB shows."""

    image: str
    label: str
    single: list[str]
    bytes: int
    native: bool


def hdf5_source(files: Sequence[Path], choice: Choice = NOT_CHOSEN) -> SpoolSource:
    """The source of these files. Raises DatasetError, e.g. if it is not clear which of their arrays are the images."""
    labels: list[Label] = []
    size, native = 0, False
    for path in files:
        with _opened(path) as file:
            contents = _contents(file, path.name, choice)
            labels += _labels(file, path.name, contents)
            size += contents.bytes
            native |= contents.native
    classes = class_names(labels)
    read = partial(samples, choice=choice, classes=classes, native=native)
    return SpoolSource(
        "hdf5", [str(path) for path in files], files, read, size + TAR_BYTES * len(labels), classes
    )  # fmt: skip


def samples(path: str, choice: Choice, classes: tuple[str, ...], native: bool) -> Iterator[Sample]:
    """The images of one file, in order; pixels as PNGs, or with `native` as .npy. Raises DatasetError."""
    name, number_of = Path(path), numbering(classes)
    with _opened(name) as file:
        contents = _contents(file, name.name, choice)
        labels = _labels(file, name.name, contents)
        encode = partial(_npy, layout=choice.layout) if native else _png
        if contents.image:
            images = _images(file[contents.image], encode)
        else:
            images = (_of_single(file[key], encode) for key in contents.single)
        keys = contents.single or [f"{name.stem}-{row:08d}" for row in range(len(labels))]
        try:
            for key, data, label in zip(keys, images, labels, strict=True):
                yield Sample(key.rpartition(".")[0] if contents.single and "." in key else key, data, number_of(label))
        except BadImage as error:
            raise DatasetError(f"{name.name}: {error.reason}; give images") from None
        except OSError as error:  # of a damaged block
            raise _damaged(name, error) from None


# ---------------------------------------------------------------------------------------------- what a file holds


def _opened(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        advice = ".venv/bin/python -m pip install h5py"
        raise DatasetError(f"{path.name}: HDF5 needs the package h5py; install it: {advice}") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if error.errno is not None and not path.is_file():
            raise
        raise _damaged(path, error) from None


def _contents(file: Any, name: str, choice: Choice) -> Contents:
    import h5py

    datasets: dict[str, Any] = {}
    file.visititems(lambda key, item: datasets.update({key: item} if isinstance(item, h5py.Dataset) else {}))
    single = [key for key, item in datasets.items() if _is_single(item)] or _classes_of_arrays(datasets)
    arrays = [key for key, item in datasets.items() if _is_array(item) and key not in single]
    if not arrays and not single and choice.channels != RGB:
        arrays = [key for key, item in datasets.items() if _is_deep(item)]
    if not arrays and not single:
        held = ", ".join(f"{key} {item.dtype}{list(item.shape)}" for key, item in list(datasets.items())[:6])
        raise DatasetError(f"{name}: no dataset holds images ({held or 'it is empty'}); give one that does")
    if single and not arrays:
        inside = [key for key in single if choice.image is None or key.startswith(f"{choice.image}/")]
        tops = sorted({key.partition("/")[0] for key in single if "/" in key})
        if (choice.image is None and are_splits(tops)) or not inside:
            problem = f"{name}: its groups are {', '.join(tops[:6])}"
            raise DatasetError(f"{problem}; choose the images with data.image={tops[0] if tops else single[0]}")
        size = sum(datasets[key].nbytes for key in inside)
        return Contents("", "", inside, size, any(_is_native(datasets[key], 0, choice) for key in inside))
    image = chosen_image(arrays, choice)
    rows = len(datasets[image])
    able = [key for key, item in datasets.items() if key not in arrays and _can_label(item, rows)]
    label = chosen_label(able, choice, [key for key in able if key.rpartition("/")[2] in ("label", "labels", "y")])
    item = datasets[image]
    size = item.nbytes if item.ndim > 1 else sum(len(_bytes(value)) for value in item[:LOOKED_AT]) * rows // LOOKED_AT
    return Contents(image, label, [], size, _is_native(item, 1, choice))


def _is_array(item: Any) -> bool:
    """Whether a dataset holds images: bytes of pixels, or encoded ones in values of any length."""
    if item.dtype == np.uint8 and item.ndim in (3, 4) and len(item):
        return of_shape(item.shape[1:], planes_first=False) is not None
    if item.ndim != 1 or item.dtype == np.uint8 or item.dtype.kind not in "OSV" or item.dtype.names:
        return False
    return any(looks_like_image("", _bytes(value)[:16]) for value in item[:LOOKED_AT])


def _is_single(item: Any) -> bool:
    """Whether a dataset is one encoded image: an array of bytes, or a single value of bytes."""
    if item.dtype == np.uint8 and item.ndim == 1:
        return looks_like_image(item.name, item[:16].tobytes())
    return item.shape == () and item.dtype.kind in "OSV" and looks_like_image(item.name, _bytes(item[()])[:16])


def _is_deep(item: Any) -> bool:
    """Whether a dataset can hold images with other channels or types than a PNG has."""
    return item.dtype.kind in "buif" and item.ndim in (3, 4) and item.size > 0


def _classes_of_arrays(datasets: dict[str, Any]) -> list[str]:
    """The datasets that are an image each, if all are, in groups: (h, w), (h, w, c) or (c, h, w)."""
    alone = all("/" in key and _is_image(item) for key, item in datasets.items())
    return [*datasets] if alone and len(datasets) > 1 else []


def _is_image(item: Any) -> bool:
    if item.dtype.kind not in "buif" or item.ndim not in (2, 3) or not item.size:
        return False
    return item.ndim == 2 or min(item.shape[0], item.shape[2]) <= MOST_BANDS


def _is_native(item: Any, axes: int, choice: Choice) -> bool:
    """Whether the pixels of a dataset keep their channels and depth. axes: in front of those of an image."""
    if choice.channels == RGB or item.ndim - axes not in (2, 3) or item.dtype.kind not in "buif":
        return False
    pictures = item.dtype == np.uint8 and of_shape(item.shape[axes:], planes_first=False) is not None
    return choice.channels != AUTO or not pictures


def _can_label(item: Any, rows: int) -> bool:
    return item.dtype.kind in "iufbOS" and math.prod(item.shape) == rows == (item.shape or (0,))[0]


def _labels(file: Any, name: str, contents: Contents) -> list[Label]:
    """The label of each image."""
    if contents.single:
        folders = [key.rpartition("/")[0].rpartition("/")[2] for key in contents.single]
        return [folder or None for folder in folders]
    if not contents.label:
        return [None] * len(file[contents.image])
    return [label_of(value, f"{name}: {contents.label}") for value in file[contents.label][()].ravel().tolist()]


# ---------------------------------------------------------------------------------------------- images


def _images(array: Any, encode: Callable[[np.ndarray], bytes]) -> Iterator[bytes]:
    for first in range(0, len(array), ROWS):
        for value in array[first : first + ROWS]:
            yield encode(value) if array.ndim > 1 else _bytes(value)


def _png(pixels: np.ndarray) -> bytes:
    order = of_shape(pixels.shape, planes_first=False)
    if order is None:
        raise BadImage(f"an array of {pixels.shape}")
    return to_png(pixels.tobytes(), order)


def _npy(pixels: np.ndarray, layout: str) -> bytes:
    stream = io.BytesIO()
    np.save(stream, with_channels_last(pixels, layout))
    return stream.getvalue()


def _of_single(item: Any, encode: Callable[[np.ndarray], bytes]) -> bytes:
    """The bytes of a dataset that is one image: encoded, or pixels. b'' if they are no image."""
    try:
        return encode(item[()]) if item.ndim > 1 else _bytes(item[()])
    except BadImage:
        return b""


def _bytes(value: Any) -> bytes:
    """The bytes of a value: bytes, an array of bytes, or an opaque value. Text is no image."""
    if isinstance(value, bytes):
        return value
    return value.tobytes() if isinstance(value, np.ndarray | np.void | np.bytes_) else b""


def _damaged(path: Path, error: Exception) -> DatasetError:
    why = " ".join(str(error).split())[:200]
    return DatasetError(f"{path.name}: no HDF5 file, or damaged ({why}); copy it again")
