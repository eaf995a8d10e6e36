"""Fashion-MNIST as WebDataset shards: `make data`, and `make train` if the recipe needs it.

60,000 train and 10,000 test images, 28 x 28 gray, 10 classes (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747).
The four IDX files come from Debian's package `dataset-fashion-mnist` (without root) or from the authors' address.
The SHA-256 of the unpacked bytes is checked, because Debian's .gz differ in the name and time of their headers; with
the original headers, all four have the MD5 sums that the authors publish.

The PNGs are stored, not deflated, and everything else that could vary is fixed, so the shards have the same SHA-256
on every machine and with every zlib.
"""

from __future__ import annotations

import gzip
import hashlib
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.progress import progress_bar
from pipeline.collections.packages import Unavailable, from_debian
from pipeline.dataset.idx import parse_idx, stored_png
from pipeline.dataset.shards import Record, pack
from pipeline.dataset.table import DatasetError, SampleTable

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SUMS = {  # SHA-256 of the unpacked IDX files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}  # folder: prefix of the IDX files, images
PACKAGE, PACKAGE_BYTES = "dataset-fashion-mnist", 30_900_652
INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # where the package puts its files
OFFICIAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
SHARD = 15_000  # images: four train shards
SEED = 20170825  # of the shuffle before packing


def prepare(out: Path, progress: bool = True, workers: int = 1) -> dict[str, SampleTable]:
    """Tables of `out/train` and `out/test`; a missing one is fetched and packed first. Raises DatasetError."""
    missing = [split for split in SPLITS if not (out / split / "table.npz").exists()]
    if missing:
        idx = fetch(progress)
        for split in missing:
            prefix, count = SPLITS[split]
            images = parse_idx(idx[f"{prefix}-images-idx3-ubyte"])
            labels = parse_idx(idx[f"{prefix}-labels-idx1-ubyte"])
            if images.shape != (count, 28, 28) or labels.shape != (count,):
                raise DatasetError(f"Fashion-MNIST {split}: {images.shape} images and {labels.shape} labels")
            pack(
                records(images, labels), out / split, split, CLASSES, max_count=SHARD,
                workers=workers, progress=progress, total=count,
            )  # fmt: skip
    return {split: SampleTable.load(out / split / "table.npz") for split in SPLITS}


# ---------------------------------------------------------------------------------------------- fetch


def fetch(progress: bool = True, address: str = OFFICIAL, sums: Mapping[str, str] = SUMS) -> dict[str, bytes]:
    """The unpacked IDX files by name, verified, from the first source that has them. Raises DatasetError."""
    failures = []
    with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as temporary:
        for source in (_installed, _from_debian, _from_authors):
            try:
                folder = source(Path(temporary), tuple(sums), address, progress)
                return {name: _verified(folder / f"{name}.gz", digest) for name, digest in sums.items()}
            except Unavailable as why:
                failures.append(str(why))
    raise DatasetError(f"Fashion-MNIST cannot be fetched: {'; '.join(failures)}")


def _installed(temporary: Path, names: tuple[str, ...], address: str, progress: bool) -> Path:
    if not INSTALLED.is_dir():
        raise Unavailable(f"package {PACKAGE} is not installed")
    return INSTALLED


def _from_debian(temporary: Path, names: tuple[str, ...], address: str, progress: bool) -> Path:
    return from_debian(PACKAGE, PACKAGE_BYTES, temporary, progress) / INSTALLED.relative_to("/")


def _from_authors(temporary: Path, names: tuple[str, ...], address: str, progress: bool) -> Path:
    folder = temporary / "authors"
    folder.mkdir()
    for name in names:
        url = f"{address.rstrip('/')}/{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer, open(folder / f"{name}.gz", "wb") as file:
                size = int(answer.headers.get("Content-Length") or 0) or None
                with progress_bar(size, f"fetching {name}.gz", "B", progress) as bar:
                    while block := answer.read(1 << 20):
                        file.write(block)
                        bar.update(len(block))
        except (OSError, ValueError) as error:  # URLError is an OSError
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise Unavailable(f"{url} cannot be reached ({reason})") from None
    return folder


def _verified(path: Path, digest: str) -> bytes:
    """The unpacked bytes of a .gz. Raises Unavailable if they are not the published ones."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise Unavailable(f"{path.name} cannot be unpacked ({error})") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise Unavailable(f"{path.name} is not the published file (SHA-256 of its content differs)")
    return data


# ---------------------------------------------------------------------------------------------- convert


def records(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Iterator[Record]:
    """Records to pack, in a fixed random order; a key is the position in the original file."""
    # NumPy guarantees the stream of RandomState for ever; that of default_rng() may change.
    for index in np.random.RandomState(SEED).permutation(len(images)):
        yield Record(f"{index:05d}", stored_png(images[index]), "png", int(labels[index]))
