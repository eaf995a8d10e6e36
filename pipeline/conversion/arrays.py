"""IDX files (MNIST, Fashion-MNIST) and CIFAR's Python files, to be spooled as PNGs.

CIFAR comes as pickles, which may run any code. The unpickler here builds only arrays, text, numbers, lists and
dictionaries, and refuses everything else.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.conversion.spool import TAR_BYTES, Sample, SpoolSource
from pipeline.dataset.finding.find import CIFAR, IDX
from pipeline.dataset.idx import parse_idx, stored_png
from pipeline.dataset.table import DatasetError

PNG_BYTES = 80  # bytes of a stored PNG in addition to its rows
META = ("batches.meta", "meta")  # files of class names in CIFAR-10 and CIFAR-100
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- IDX


def idx_source(images: Path) -> SpoolSource:
    """The source of an IDX file of images, with its file of labels if that is in the same folder."""
    labels = _idx_labels(images)
    files = [images, *([labels] if labels else [])]
    return SpoolSource("idx", [str(images)], files, idx_samples, _spooled_idx_bytes(images))


def idx_samples(path: str) -> Iterator[Sample]:
    """Images of an IDX file as gray PNGs, named by their number. Raises DatasetError."""
    images = _read_idx(Path(path))
    label_file = _idx_labels(Path(path))
    labels = _read_idx(label_file) if label_file else None
    if images.ndim != 3 or (labels is not None and labels.shape != images.shape[:1]):
        shapes = f"images of shape {images.shape}" + (f" and labels of {labels.shape}" if labels is not None else "")
        raise DatasetError(f"{Path(path).name}: {shapes}; give the pair that belongs together")
    for index, image in enumerate(images):
        yield Sample(f"{index:06d}", stored_png(image), -1 if labels is None else int(labels[index]))


def _spooled_idx_bytes(path: Path) -> int:
    """Estimated bytes of the images in a tar, by the header; 0 if that is damaged (reading reports it later)."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            count, height, width = struct.unpack(">4x3I", file.read(16))
    except (OSError, EOFError, zlib.error, struct.error):
        return 0
    return count * (height * (width + 1) + PNG_BYTES + TAR_BYTES)


def _idx_labels(images: Path) -> Path | None:
    """The file of labels that belongs to a file of images; None if it does not exist."""
    parts = IDX.fullmatch(images.name)
    assert parts
    base = f"{parts[1]}labels{parts[2]}idx1{parts[3] or ''}"
    return next((path for name in (base, f"{base}.gz") if (path := images.with_name(name)).exists()), None)


def _read_idx(path: Path) -> UInt8[np.ndarray, " *shape"]:
    try:
        data = path.read_bytes()
        return parse_idx(gzip.decompress(data) if path.suffix.lower() == ".gz" else data)
    except (OSError, EOFError, zlib.error, DatasetError) as error:
        raise DatasetError(f"{path.name}: damaged IDX file ({error}); copy it again") from None


# ---------------------------------------------------------------------------------------------- CIFAR


def cifar_source(path: Path) -> SpoolSource:
    """The source of CIFAR: the training set in a folder or .tar.gz, or one file in either ('.../test_batch')."""
    if path.is_dir():
        names = {entry.name: entry.stat().st_size for entry in os.scandir(path)}
        meta = next((path / name for name in META if (path / name).exists()), None)
        classes = _classes(meta.read_bytes(), meta.name) if meta else ()
        return _cifar(path, names, classes, [path / name for name in _training(names)])
    if path.parent.is_file():
        names, classes = _archive(path.parent)
        return SpoolSource(
            "cifar", [str(path)], [path.parent], cifar_samples, _spooled_bytes(names.get(path.name, 0)), classes
        )
    if not CIFAR.fullmatch(path.name):
        names, classes = _archive(path)
        return _cifar(path, names, classes, [path])
    meta = next((path.with_name(name) for name in META if path.with_name(name).exists()), None)
    classes = _classes(meta.read_bytes(), meta.name) if meta else ()
    return SpoolSource("cifar", [str(path)], [path], cifar_samples, _spooled_bytes(path.stat().st_size), classes)


def cifar_samples(path: str) -> Iterator[Sample]:
    """Images of one batch as RGB PNGs. path: a pickle, or `archive.tar.gz/name`. Raises DatasetError."""
    name = Path(path).name
    try:
        data = Path(path).read_bytes() if os.path.isfile(path) else _member(Path(path))
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DatasetError(f"{name}: cannot be read ({error}); copy it again") from None
    batch = load_plain(data, name)
    pixels = batch.get("data")
    labels = batch.get("fine_labels", batch.get("labels"))
    names = batch.get("filenames")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise DatasetError(f"{name}: no 'data' of N x 3072 bytes; give CIFAR's Python version")
    if not isinstance(labels, list) or len(labels) != len(pixels) or any(type(label) is not int for label in labels):
        raise DatasetError(f"{name}: its labels are not one number per image; give CIFAR's Python version")
    if not isinstance(names, list) or len(names) != len(pixels):
        names = [f"{index:05d}" for index in range(len(pixels))]
    for image, label, file_name in zip(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, names, strict=True):
        yield Sample(os.path.splitext(_text(file_name))[0], stored_png(np.ascontiguousarray(image)), label)


def load_plain(data: bytes, name: str) -> dict[str, Any]:
    """A pickled dictionary of arrays, text, numbers and lists. Raises DatasetError for anything else."""
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from None
    except Exception as error:  # a damaged pickle can raise any error
        raise DatasetError(f"{name}: damaged pickle ({' '.join(str(error).split())[:200]}); copy it again") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{name}: holds no dictionary; give CIFAR's Python version")
    return {_text(key): value for key, value in content.items()}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            problem = f"its pickle asks for {module}.{name}, which could run any program"
            raise DatasetError(f"{problem}; fetch the file from its authors")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)  # the new name since NumPy 2


def _spooled_bytes(pickled: int) -> int:
    """Estimated bytes in a tar of the images in `pickled` bytes of batches."""
    return pickled // 3073 * (32 * 97 + PNG_BYTES + TAR_BYTES)


def _cifar(path: Path, names: dict[str, int], classes: tuple[str, ...], files: list[Path]) -> SpoolSource:
    """The training set in a folder or archive; names: of its files, with their bytes."""
    batches = _training(names)
    if not batches:
        raise DatasetError("a compressed archive, whose images have no byte range; unpack it and give the folder")
    size = _spooled_bytes(sum(names[name] for name in batches))
    return SpoolSource("cifar", [str(path / name) for name in batches], files, cifar_samples, size, classes)


def _training(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if CIFAR.fullmatch(name) and not name.startswith("test"))


def _archive(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Names and bytes of the batches in CIFAR's .tar.gz, and the class names; both empty for any other archive."""
    names: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if not names and not classes and not member.name.startswith("cifar-"):
                    return {}, ()  # not CIFAR: stops before reading 100 GB
                if member.isreg() and name in META and (file := archive.extractfile(member)):
                    classes = _classes(file.read(), name)
                elif member.isreg() and CIFAR.fullmatch(name):
                    names[name] = member.size
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DatasetError(f"damaged archive ({' '.join(str(error).split())}); copy it again") from None
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
