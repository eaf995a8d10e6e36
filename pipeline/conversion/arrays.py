"""IDX (MNIST, Fashion-MNIST) and CIFAR's python files, to be spooled as PNGs.

CIFAR comes as pickles, and a pickle may run anything: the one that reads them here builds arrays, text, numbers, lists
and dictionaries, and nothing else.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.conversion.spool import TAR_BYTES, Foreign, Sample
from pipeline.dataset.idx import parse_idx, stored_png
from pipeline.dataset.table import DatasetError

IDX = re.compile(r"(.*)images([-.])idx3(-ubyte)?(\.gz)?", re.IGNORECASE)
CIFAR = re.compile(r"data_batch_\d+|test_batch|train|test")
PNG_BYTES = 80  # of a stored PNG beyond its rows
META = ("batches.meta", "meta")  # CIFAR-10's and -100's files of class names
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- IDX


def idx_source(images: Path) -> Foreign:
    """The source of one IDX file of images, with the labels beside it if there are any."""
    labels = _idx_labels(images)
    files = [images, *([labels] if labels else [])]
    return Foreign("idx", [str(images)], files, idx_samples, _spooled_idx_bytes(images))


def idx_samples(path: str) -> Iterator[Sample]:
    """Images of an IDX file as gray PNGs, each called by its number. Raises DatasetError."""
    images = _read_idx(Path(path))
    found = _idx_labels(Path(path))
    labels = _read_idx(found) if found else None
    if images.ndim != 3 or (labels is not None and labels.shape != images.shape[:1]):
        told = f"images of shape {images.shape}" + (f" and labels of {labels.shape}" if labels is not None else "")
        raise DatasetError(f"{Path(path).name}: {told}; give the pair that belongs together")
    for index, image in enumerate(images):
        yield Sample(f"{index:06d}", stored_png(image), -1 if labels is None else int(labels[index]))


def _spooled_idx_bytes(path: Path) -> int:
    """About what the images take in a tar, by the header; 0 where that is unsound, which reading will tell."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            count, height, width = struct.unpack(">4x3I", file.read(16))
    except (OSError, EOFError, zlib.error, struct.error):
        return 0
    return count * (height * (width + 1) + PNG_BYTES + TAR_BYTES)


def _idx_labels(images: Path) -> Path | None:
    """The file of labels that belongs to a file of images."""
    parts = IDX.fullmatch(images.name)
    assert parts
    base = f"{parts[1]}labels{parts[2]}idx1{parts[3] or ''}"
    return next((path for name in (base, f"{base}.gz") if (path := images.with_name(name)).exists()), None)


def _read_idx(path: Path) -> UInt8[np.ndarray, " *shape"]:
    try:
        data = path.read_bytes()
        return parse_idx(gzip.decompress(data) if path.suffix.lower() == ".gz" else data)
    except (OSError, EOFError, zlib.error, DatasetError) as error:
        raise DatasetError(f"{path.name}: no sound IDX file ({error}); copy it anew") from None


# ---------------------------------------------------------------------------------------------- CIFAR


def is_cifar(files: Sequence[Path]) -> bool:
    """Whether a folder with these files is CIFAR-10's or CIFAR-100's."""
    names = {file.name for file in files}
    return "data_batch_1" in names or {"train", "meta"} <= names


def cifar_source(path: Path) -> Foreign:
    """The source of a folder or .tar.gz of CIFAR (its training half), or of one file in either ('.../test_batch')."""
    if path.is_dir():
        names = {entry.name: entry.stat().st_size for entry in os.scandir(path)}
        meta = next((path / name for name in META if (path / name).exists()), None)
        classes = _classes(meta.read_bytes(), meta.name) if meta else ()
        return _cifar(path, names, classes, [path / name for name in _training(names)])
    if path.parent.is_file():
        names, classes = _archive(path.parent)
        return Foreign(
            "cifar", [str(path)], [path.parent], cifar_samples, _spooled_bytes(names.get(path.name, 0)), classes
        )
    if not CIFAR.fullmatch(path.name):
        names, classes = _archive(path)
        return _cifar(path, names, classes, [path])
    meta = next((path.with_name(name) for name in META if path.with_name(name).exists()), None)
    classes = _classes(meta.read_bytes(), meta.name) if meta else ()
    return Foreign("cifar", [str(path)], [path], cifar_samples, _spooled_bytes(path.stat().st_size), classes)


def cifar_samples(path: str) -> Iterator[Sample]:
    """Images of one batch as RGB PNGs. `path`: a pickle, or `archive.tar.gz/name`. Raises DatasetError."""
    name = Path(path).name
    try:
        data = Path(path).read_bytes() if os.path.isfile(path) else _member(Path(path))
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DatasetError(f"{name}: cannot be read ({error}); copy it anew") from None
    batch = load_plain(data, name)
    pixels = batch.get("data")
    labels = batch.get("fine_labels", batch.get("labels"))
    names = batch.get("filenames")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise DatasetError(f"{name}: no 'data' of N x 3072 bytes; give CIFAR's python version")
    if not isinstance(labels, list) or len(labels) != len(pixels) or any(type(label) is not int for label in labels):
        raise DatasetError(f"{name}: its labels are not one number an image; give CIFAR's python version")
    if not isinstance(names, list) or len(names) != len(pixels):
        names = [f"{index:05d}" for index in range(len(pixels))]
    for image, label, called in zip(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, names, strict=True):
        yield Sample(os.path.splitext(_text(called))[0], stored_png(np.ascontiguousarray(image)), label)


def load_plain(data: bytes, name: str) -> dict[str, Any]:
    """A pickled dictionary of arrays, text, numbers and lists. Raises DatasetError if it asks for anything else."""
    try:
        found = _Plain(io.BytesIO(data), encoding="bytes").load()
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from None
    except Exception as error:  # a damaged pickle raises anything
        raise DatasetError(f"{name}: no sound pickle ({' '.join(str(error).split())[:200]}); copy it anew") from None
    if not isinstance(found, dict):
        raise DatasetError(f"{name}: holds no dictionary; give CIFAR's python version")
    return {_text(key): value for key, value in found.items()}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            told = f"its pickle asks for {module}.{name}, which could run any program"
            raise DatasetError(f"{told}; fetch the file from its authors")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)  # the new name since NumPy 2


def _spooled_bytes(pickled: int) -> int:
    """About what the images of so many bytes of batches take in a tar."""
    return pickled // 3073 * (32 * 97 + PNG_BYTES + TAR_BYTES)


def _cifar(path: Path, names: dict[str, int], classes: tuple[str, ...], files: list[Path]) -> Foreign:
    """`names`: of the files in the folder or archive, and their bytes."""
    wanted = _training(names)
    if not wanted:
        raise DatasetError("a compressed archive, whose images have no byte range; unpack it and give the folder")
    size = _spooled_bytes(sum(names[name] for name in wanted))
    return Foreign("cifar", [str(path / name) for name in wanted], files, cifar_samples, size, classes)


def _training(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if CIFAR.fullmatch(name) and not name.startswith("test"))


def _archive(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Names of the batches in CIFAR's .tar.gz (none in any other) and their bytes, and the class names."""
    names: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if not names and not classes and not member.name.startswith("cifar-"):
                    return {}, ()  # not CIFAR: no need to read 100 GB
                if member.isreg() and name in META and (file := archive.extractfile(member)):
                    classes = _classes(file.read(), name)
                elif member.isreg() and CIFAR.fullmatch(name):
                    names[name] = member.size
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DatasetError(f"no sound archive ({' '.join(str(error).split())}); copy it anew") from None
    return names, classes


def _member(path: Path) -> bytes:
    """The file `path.name` in the archive `path.parent`."""
    with tarfile.open(path.parent, "r:*") as archive:
        for member in archive:
            if member.isreg() and os.path.basename(member.name) == path.name and (file := archive.extractfile(member)):
                return file.read()
    raise DatasetError(f"{path.parent.name} holds no {path.name}; name a file in it")


def _classes(data: bytes, name: str) -> tuple[str, ...]:
    meta = load_plain(data, name)
    return tuple(_text(label) for label in meta.get("fine_label_names", meta.get("label_names", [])))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
