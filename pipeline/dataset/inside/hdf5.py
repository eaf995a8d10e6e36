"""HDF5 files of images: arrays of images, arrays of encoded images, and solo-learn's dataset for each image.

images (N, h, w), (N, h, w, c) or (N, c, h, w) | images (N,) bytes of files | class/name (bytes,) uint8 or (h, w, c)

A label is a dataset of the same length beside the images: numbers or text; else the group of an image. Needs h5py.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.channels.settle import RGB
from pipeline.dataset.finding.choice import LABELS, Choice, chosen_image, chosen_label
from pipeline.dataset.finding.labels import Label, label_of
from pipeline.dataset.finding.layout import are_splits
from pipeline.dataset.idx import stored_png
from pipeline.dataset.inside.names import ROWS
from pipeline.dataset.records.pixels import GRAY, PLANES, of_shape
from pipeline.dataset.sniff import HEAD, looks_like_image
from pipeline.dataset.table import DatasetError

LOOKED_AT = 8  # values that say whether an array holds encoded images
MOST_BANDS = 64  # of an image that is a dataset of its own: more are rows
OPEN = 512  # datasets of a process


class Held(NamedTuple):
    """What is known of a dataset. encoded: whether its first bytes, or those of its first values, are an image file's.
    ranges: byte offset of the dataset, or of each row of an array, where the file has them as they are; else None."""

    dtype: np.dtype
    shape: tuple[int, ...]
    encoded: bool
    ranges: NDArray[np.int64] | None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Contents(NamedTuple):
    """What is read of a file. image: name of the array of images, '' if each image is a dataset; label: name of the
    array of labels, '' without; single: names of the datasets that are an image each; held: what is known of these.
    left_out: number of values, or rows, of each other dataset."""

    image: str
    label: str
    single: list[str]
    held: dict[str, Held]
    left_out: dict[str, int]


def opened(path: Path) -> Any:
    """The h5py file. Raises DatasetError without h5py and for a damaged file, OSError for one that is gone."""
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
        raise damaged(path, error) from None


def contents_of(file: Any, name: str, choice: Choice, seen: Callable[[], Any] = lambda: None) -> Contents:
    """seen: called for each dataset and group. Raises DatasetError, e.g. if it is not clear which arrays are the
    images, or for a damaged file."""
    import h5py

    held: dict[str, Held] = {}

    def look(key: str, item: Any) -> None:
        seen()
        if isinstance(item, h5py.Dataset):
            held[key] = Held(item.dtype, item.shape or (), _is_encoded(item), ranges_of(item))

    try:
        file.visititems(look)
    except (OSError, RuntimeError) as error:
        raise damaged(Path(name), error) from None
    single = [key for key, item in held.items() if item.encoded and _is_single(item)] or _classes_of_arrays(held)
    alone = set(single)
    arrays = [key for key, item in held.items() if key not in alone and (item.encoded or _is_array(item))]
    if not arrays and not single and choice.channels != RGB:
        arrays = [key for key, item in held.items() if _is_deep(item)]
    if not arrays and not single:
        shown = ", ".join(f"{key} {item.dtype}{list(item.shape)}" for key, item in list(held.items())[:6])
        raise DatasetError(f"{name}: no dataset holds images ({shown or 'it is empty'}); give one that does")
    if single and not arrays:
        chosen = [key for key in single if choice.image is None or key.startswith(f"{choice.image}/")]
        tops = sorted({key.partition("/")[0] for key in single if "/" in key})
        if (choice.image is None and are_splits(tops)) or not chosen:
            problem = f"{name}: its groups are {', '.join(tops[:6])}"
            raise DatasetError(f"{problem}; choose the images with data.image={tops[0] if tops else single[0]}")
        return Contents("", "", chosen, {key: held[key] for key in chosen}, _others(held, chosen))
    image = chosen_image(arrays, choice)
    rows = held[image].shape[0]
    able = [key for key, item in held.items() if key not in arrays and _can_label(item, rows)]
    label = chosen_label(able, choice, [key for key in able if key.rpartition("/")[2] in ("label", "labels", "y")])
    unable = [key for key in held if key.rpartition("/")[2].lower() in LABELS and key not in able + arrays]
    if unable and not label and choice.label is None:
        found = f"{unable[0]} is {held[unable[0]].dtype}{list(held[unable[0]].shape)}"
        problem = f"{name}: the dataset {found}, and not a class for each of {rows} images"
        raise DatasetError(f"{problem}; choose another with data.label, or data.label=none")
    return Contents(image, label, [], {image: held[image]}, _others(held, [image, label]))


def _others(held: dict[str, Held], used: Sequence[str]) -> dict[str, int]:
    known = set(used)
    return {f"dataset {key}": item.shape[0] if item.shape else 1 for key, item in held.items() if key not in known}


def labels_of(file: Any, name: str, contents: Contents) -> list[Label]:
    """The label of each image. Raises DatasetError."""
    if contents.single:
        folders = [key.rpartition("/")[0].rpartition("/")[2] for key in contents.single]
        return [folder or None for folder in folders]
    if not contents.label:
        return [None] * len(file[contents.image])
    return [label_of(value, f"{name}: {contents.label}") for value in file[contents.label][()].ravel().tolist()]


def ranges_of(item: Any) -> NDArray[np.int64] | None:
    """See `Held.ranges`."""
    import h5py

    if item.dtype.kind == "O" or not item.size:
        return None
    plan = item.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.CONTIGUOUS and not plan.get_external_count():
        first = item.id.get_offset()
        if first is None:  # nothing was written
            return None
        rows = item.shape[0] if item.ndim > 2 else 1
        return first + np.arange(rows) * (item.size // rows * item.dtype.itemsize)
    if item.chunks != (1, *item.shape[1:]) or plan.get_nfilters() or item.ndim < 3:
        return None
    offsets = np.full(item.shape[0], -1)

    def put(chunk: Any) -> None:
        offsets[chunk.chunk_offset[0]] = chunk.byte_offset

    item.id.chunk_iter(put)
    return offsets if (offsets >= 0).all() else None


def _is_encoded(item: Any) -> bool:
    """Whether a dataset is an image file (an array of bytes, or a single value of bytes), or an array of them."""
    if item.dtype == np.uint8:
        return item.ndim == 1 and looks_like_image(item.name, item[:HEAD].tobytes())
    if item.ndim > 1 or item.shape is None or item.dtype.kind not in "OSV" or item.dtype.names:
        return False
    values = [item[()]] if item.ndim == 0 else item[:LOOKED_AT]
    return any(looks_like_image(item.name if item.ndim == 0 else "", bytes_in(value)[:HEAD]) for value in values)


def _is_single(item: Held) -> bool:
    return item.dtype == np.uint8 or not item.shape


def _is_array(item: Held) -> bool:
    """Whether a dataset holds images of 8-bit pixels."""
    if item.dtype != np.uint8 or len(item.shape) not in (3, 4) or not item.shape[0]:
        return False
    return of_shape(item.shape[1:], planes_first=False) is not None


def _is_deep(item: Held) -> bool:
    """Whether a dataset can hold images with other channels or types than a PNG has."""
    return item.dtype.kind in "buif" and len(item.shape) in (3, 4) and item.bytes > 0


def _classes_of_arrays(held: dict[str, Held]) -> list[str]:
    """The datasets that are an image each, if all are, in groups: (h, w), (h, w, c) or (c, h, w)."""
    alone = all("/" in key and _is_image(item) for key, item in held.items())
    return [*held] if alone and len(held) > 1 else []


def _is_image(item: Held) -> bool:
    if item.dtype.kind not in "buif" or len(item.shape) not in (2, 3) or not item.bytes:
        return False
    return len(item.shape) == 2 or min(item.shape[0], item.shape[2]) <= MOST_BANDS


def _can_label(item: Held, rows: int) -> bool:
    return item.dtype.kind in "iufbOS" and math.prod(item.shape) == rows == (item.shape or (0,))[0]


def damaged(path: Path, error: Exception) -> DatasetError:
    why = " ".join(str(error).split())[:200]
    return DatasetError(f"{path.name}: no HDF5 file, or damaged ({why}); copy it again")


# ---------------------------------------------------------------------------------------------- one image


def read_hdf5(path: str, key: str, row: int) -> bytes:
    """The image that the dataset `key` is, or with `/` at its end the row of it, as `as_file` gives it; in any process
    and thread, also of one that has been forked. Raises OSError."""
    status = os.stat(path)
    try:
        item = _dataset(path, key, os.getpid(), status.st_mtime_ns, status.st_size)
        return as_file(item[row] if key.endswith(ROWS) else item[()])
    except (KeyError, ValueError, IndexError, RuntimeError, DatasetError) as error:
        raise OSError(str(error)) from None


@lru_cache(maxsize=OPEN)
def _dataset(path: str, key: str, process: int, time: int, size: int) -> Any:
    """An open dataset: to open it takes longer than to read a row. process: a forked one has its own."""
    return _file(path, process, time, size)[key]


@lru_cache(maxsize=OPEN // 8)
def _file(path: str, process: int, time: int, size: int) -> Any:
    return opened(Path(path))


def as_file(value: Any) -> bytes:
    """The bytes of an image that stands in a file. An array of 8-bit gray, RGB or RGBA becomes a PNG, others .npy; b''
    for what is no image."""
    if not isinstance(value, np.ndarray) or value.ndim < 2:
        return bytes_in(value)
    order = of_shape(value.shape, planes_first=False) if value.dtype == np.uint8 else None
    if order is not None:
        planes = value.transpose(1, 2, 0) if order.order == PLANES else value
        return stored_png(planes.reshape(order.height, order.width, -1).squeeze(2) if order.order == GRAY else planes)
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(value))
    return stream.getvalue()


def bytes_in(value: Any) -> bytes:
    """The bytes of a value: bytes, an array of bytes, or an opaque value. Text is no image."""
    if isinstance(value, bytes):
        return value
    return value.tobytes() if isinstance(value, np.ndarray | np.void | np.bytes_) else b""
