"""The images of a benchmark: the user's own, or JPEGs made from photographs in scikit-image and scikit-learn."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from common.files import replacing
from common.progress import progress_bar
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import SampleTable, State

BYTES = 85_000  # of a made JPEG, at most; smooth images stay below it, so that the mean is 76 kB
SHAPES = ((500, 375), (500, 375), (500, 375), (375, 500), (500, 333))  # width, height; images take them in turn
QUALITIES = (60, 98)  # lowest and highest
IN_MEMORY = 2048  # images kept for contenders that read no files


@dataclass(frozen=True)
class Jpegs:
    """JPEGs in memory, N of them, with their height and width in pixels."""

    encoded: list[UInt8[np.ndarray, " bytes"]]
    height: Int[np.ndarray, " N"]
    width: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.encoded)

    def part(self, first: int, last: int) -> Jpegs:
        """Images `first` to `last` - 1."""
        return Jpegs(self.encoded[first:last], self.height[first:last], self.width[first:last])


def make_jpegs(
    folder: Path, count: int, threads: int, maker: Callable[[list[Image.Image], int], bytes] | None = None
) -> Path:
    """Make the missing ones of `count` JPEGs 00000.jpg, 00001.jpg, ... in `folder`; the same on every machine.

    maker: makes the bytes of image `index` from the photographs; `jpeg_of` by default. Returns `folder`. Raises
    ValueError if the photographs are not installed.
    """
    maker = maker or jpeg_of
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(count) if not (folder / f"{index:05d}.jpg").exists()]
    if missing:
        sources = photographs()

        def make(index: int) -> None:
            with replacing(folder / f"{index:05d}.jpg") as file:
                file.write(maker(sources, index))

        title = f"making JPEGs in {folder}"
        with progress_bar(len(missing), title, "img", True) as bar, ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(make, missing):
                bar.update()
    return folder


def photographs() -> list[Image.Image]:
    """Eight RGB photographs of 0.1 to 0.4 megapixels. Raises ValueError if their packages are not installed."""
    try:
        import skimage.data
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        message = f"{error.name}, whose photographs are the images, is not installed; run `make setup` or give --data"
        raise ValueError(message) from None
    left, right, _ = skimage.data.stereo_motorcycle()
    arrays = [
        *load_sample_images().images,
        skimage.data.astronaut(),
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.rocket(),
        left,
        right,
    ]
    return [Image.fromarray(array[..., :3]) for array in arrays]


def jpeg_of(sources: list[Image.Image], index: int) -> bytes:
    """A random part of a photograph as a JPEG of at most `BYTES`; `index` alone decides which part of which one."""
    random = np.random.default_rng(index)
    source, (width, height) = sources[index % len(sources)], SHAPES[index % len(SHAPES)]
    largest = min(source.width / width, source.height / height)
    w, h = (largest * side * random.uniform(0.7, 1.0) for side in (width, height))
    left, top = random.uniform(0, source.width - w), random.uniform(0, source.height - h)
    image = source.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    low, high = QUALITIES
    while high - low > 1:  # the size grows with the quality
        middle = (low + high) // 2
        low, high = (middle, high) if len(_encoded(image, middle)) <= BYTES else (low, middle)
    return _encoded(image, low)


def _encoded(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def require_pictures(table: SampleTable, source: object) -> None:
    """Raises ValueError for images with their own channels: the peers and the network of the benchmarks are for RGB."""
    if table.pixels.native:
        advice = "python -m perf.channels measures crops of others"
        raise ValueError(f"--data={source}: images of {table.pixels}, and this program is for 8-bit RGB; {advice}")


def choose(table: SampleTable, count: int) -> SampleTable:
    """A table of `count` evenly spread rows that every decoder reads, or of all such rows if there are fewer."""
    rows = np.flatnonzero(table.state == State.OK)
    if count < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
    columns = ("container", "offset", "length", "width", "height", "label", "state")
    return replace(table, quarantine={}, fingerprint="", **{name: getattr(table, name)[rows] for name in columns})


def files_of(table: SampleTable, folder: Path) -> list[str]:
    """A file for each row, for loaders that read only files: of shards, copies of the images in `folder`."""
    if table.loose:
        return [str(table.root / table.containers[container]) for container in table.container]
    reader, paths = Reader(table), []
    for row in range(len(table)):
        path = folder / f"{row:07d}.jpg"  # also for PNG: all loaders look at the bytes
        path.write_bytes(reader.read([row])[0].tobytes())
        paths.append(str(path))
    reader.close()
    return paths


def jpegs_in_memory(table: SampleTable, accepted: Callable[[Jpegs], np.ndarray]) -> Jpegs:
    """The JPEGs among the first `IN_MEMORY` rows that the kernel accepts. accepted: returns (N,) bool for N JPEGs."""
    reader = Reader(table)
    rows = np.arange(min(len(table), IN_MEMORY))
    encoded = reader.read(rows)
    reader.close()
    rows = rows[[image[:2].tobytes() == b"\xff\xd8" for image in encoded]]
    jpegs = Jpegs([encoded[row] for row in rows], table.height[rows].astype(int), table.width[rows].astype(int))
    kept = np.flatnonzero(accepted(jpegs))
    return Jpegs([jpegs.encoded[index] for index in kept], jpegs.height[kept], jpegs.width[kept])
