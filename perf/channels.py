"""CPU time of crops of images with their own channels: pipeline.backend=ffcv and torchvision in turns.

    python -m perf.channels [--rounds 5] [--images 64] [--threads 1] [--json channels.json]

Noisy tiles in .npy files, or as the arrays of a .beton; 2 crops of 224 and 6 of 96 pixels, all of the recipe's
augmentation, float32. Both backends get the same draws, one epoch a turn, reading included; the ratio is the median of
the ratios of the rounds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from common.cli import Parser, at_least
from perf.program import program
from pipeline.batch import Request
from pipeline.conversion.rewrite import Options
from pipeline.convert import convert
from pipeline.crops import Crops, Jitter, View
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.draw import draw
from pipeline.loader import execute, make_backend
from pipeline.requests import Feed

BACKENDS = ("ffcv", "torchvision")
VIEWS = (View(224, (0.14, 1.0)),) * 2 + (View(96, (0.05, 0.14)),) * 6


class Kind(NamedTuple):
    """Tiles: pixels a side, channels, type, and whether they are in a .beton."""

    side: int
    channels: int
    dtype: str
    beton: bool = False

    def __str__(self) -> str:
        return f"{self.side} x {self.side}, {self.channels} of {self.dtype}" + ", .beton" * self.beton


KINDS = (
    Kind(256, 4, "uint16"), Kind(512, 4, "uint16"), Kind(512, 4, "uint16", beton=True), Kind(224, 12, "uint16"),
    Kind(256, 1, "float32"),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.channels", __doc__.splitlines()[0])
    parser.add_argument("--rounds", type=at_least(1), default=5, help="turns of each backend (default %(default)s)")
    parser.add_argument("--images", type=at_least(1), default=64, help="of a kind (default %(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="of each backend (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return program(lambda _: measure(options, Path(folder)), show, options.json)


def measure(options: Any, folder: Path, kinds: tuple[Kind, ...] = KINDS, views: tuple[View, ...] = VIEWS) -> Any:
    """The report: CPU milliseconds and images a second of each backend, for each kind."""
    from perf.machine import machine

    torch.set_num_threads(1)  # a backend's threads are the only ones
    rows = [{"kind": str(kind)} | turns(options, folder / str(place), kind, views) for place, kind in enumerate(kinds)]
    return {"machine": machine(), "images": options.images, "threads": options.threads, "rows": rows}


def turns(options: Any, folder: Path, kind: Kind, views: tuple[View, ...]) -> dict[str, Any]:
    """The figures of one kind."""
    source = written(folder / "tiles", kind, options.images)
    if kind.beton:
        convert(source, folder / "tiles.beton", Options("beton"), workers=1, progress=False)
        source = folder / "tiles.beton"
    table = open_dataset(source, folder, 1, progress=False)
    channels = table.pixels.channels
    crops = Crops(views, jitter=Jitter(saturation=0, hue=0), grayscale=0, mean=(0.5,) * channels, std=(0.3,) * channels)
    size = min(32, options.images)
    backends = {name: make_backend(name, crops, size, options.threads, None, pixels=table.pixels) for name in BACKENDS}
    times: dict[str, list[float]] = {name: [] for name in BACKENDS}
    walls: dict[str, list[float]] = {name: [] for name in BACKENDS}
    feed, rows = Feed(table, Reader(table)), table.usable()

    def requests(epoch: int) -> Iterator[Request]:
        for first in range(0, len(rows), size):
            yield feed.request(epoch, 0, rows[first : first + size], partial(draw, crops, 0, epoch))

    for epoch in range(options.rounds + 1):  # the first is the warm-up
        for name, backend in backends.items():
            cpu, wall = time.process_time(), time.perf_counter()
            made = sum(len(request.rows) for request, _ in execute(backend, feed, requests(epoch)))
            times[name].append(1000 * (time.process_time() - cpu) / made)
            walls[name].append(made / (time.perf_counter() - wall))
    for backend in backends.values():
        backend.close()
    feed.reader.close()
    ratios = [slow / fast for fast, slow in zip(times["ffcv"][1:], times["torchvision"][1:], strict=True)]
    wall_ratios = [fast / slow for fast, slow in zip(walls["ffcv"][1:], walls["torchvision"][1:], strict=True)]
    return {
        "cpu_ms": {name: median(values[1:]) for name, values in times.items()},
        "images_per_second": {name: median(values[1:]) for name, values in walls.items()},
        "ratio": median(ratios),
        "ratios": [min(ratios), max(ratios)],
        "wall_ratio": median(wall_ratios),
        "wall_ratios": [min(wall_ratios), max(wall_ratios)],
    }


def written(folder: Path, kind: Kind, images: int) -> Path:
    """Tiles of noise in files."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for index in range(images):
        values = noise.random((kind.side, kind.side, kind.channels), np.float32)
        values = values if kind.dtype == "float32" else values * np.iinfo(kind.dtype).max
        np.save(folder / f"{index:05d}.npy", values.astype(kind.dtype))
    return folder


def show(report: dict[str, Any]) -> None:
    """Print a row for each kind."""
    print("| tiles | ffcv, CPU ms an image | torchvision | ratio (range) | images/s | torchvision | ratio |")
    print("| --- | ---: | ---: | --- | ---: | ---: | --- |")
    for row in report["rows"]:
        low, high = row["ratios"]
        fast, slow = (row["cpu_ms"][name] for name in BACKENDS)
        cpu = f"{fast:.2f} | {slow:.2f} | {row['ratio']:.1f} ({low:.1f} to {high:.1f})"
        many, few = (row["images_per_second"][name] for name in BACKENDS)
        low, high = row["wall_ratios"]
        print(f"| {row['kind']} | {cpu} | {many:.0f} | {few:.0f} | {row['wall_ratio']:.1f} ({low:.1f} to {high:.1f}) |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
