"""Rates of swave's backends against worker threads, batch size and image size, in short interleaved turns.

Each point changes one of these. For the image size there are sets of made images of one size, in batches of
`SIZE_BATCH`: with larger batches a turn of large images would take many seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from perf.loader.image_sizes import SIZES, of_size

if TYPE_CHECKING:
    from pipeline.crops import Crops
    from pipeline.dataset.table import SampleTable

BACKENDS = ("ffcv", "dali")
BATCHES = (16, 256)  # besides the run's own
SIZE_BATCH, SIZE_IMAGES = 16, 48
SKIPPED = 3  # batches at the start of a turn that do not count
FILES = "files"  # the run's own images
SIZE_NAMES = {f"{width} x {height}": (width, height) for width, height in SIZES}
CROPS_MEGAPIXELS = 0.3  # SwAV's crops of an image take about the time of decoding so many


@dataclass(frozen=True)
class Point:
    """One loader of the sweep. source: `FILES`, or the name of a size."""

    backend: str
    threads: int
    batch: int
    source: str


def points_of(backends: Sequence[str], cores: int, batch: int, sizes: Sequence[str]) -> list[Point]:
    """All points of a sweep, the most useful first: few and many threads, small batches, image sizes, more threads than
    cores, numbers of threads in between, large batches. The backends of a point follow each other."""
    between = [2**power for power in range(1, 10) if 2**power < cores]
    settings = [(cores, batch, FILES)]
    settings += [(1, batch, FILES)] if cores > 1 else []
    settings += [(cores, BATCHES[0], FILES)]
    settings += [(cores, SIZE_BATCH, size) for size in sizes]
    settings += [(threads, batch, FILES) for threads in (2 * cores, *between)]
    settings += [(cores, size, FILES) for size in BATCHES[1:]]
    unique = list(dict.fromkeys(settings))
    return [Point(backend, *setting) for setting in unique for backend in BACKENDS if backend in backends]


def cost_of(
    point: Point, rates: Mapping[str, float], cores: int, megapixels: float, rounds: int, seconds: float
) -> float:
    """Estimated seconds for a point, with `rounds` turns of `seconds`. rates: images a second of each backend on all
    `cores` with the run's own images, whose mean size is `megapixels`."""
    width, height = SIZE_NAMES.get(point.source, (0, 0))
    larger = (CROPS_MEGAPIXELS + width * height / 1e6) / (CROPS_MEGAPIXELS + megapixels) if width else 1.0
    rate = rates[point.backend] * min(point.threads, cores) / cores / larger
    batch = point.batch / rate
    return (rounds + 1) * (SKIPPED * batch + 0.2) + rounds * max(seconds, batch) + batch


def choose(
    points: Sequence[Point], costs: Sequence[float], room: Callable[[Point], bool], available: float
) -> tuple[list[Point], list[dict[str, Any]]]:
    """The first points that fit into `available` seconds and into memory; and the others, each with "why"."""
    chosen: list[Point] = []
    left_out = []
    for point, cost in zip(points, costs, strict=True):
        if not room(point):
            left_out.append(asdict(point) | {"why": "its batches would take more than a quarter of the free memory"})
        elif cost > available:
            left_out.append(
                asdict(point) | {"why": f"it would take {cost:.0f} s of a budget with {available:.0f} left"}
            )
        else:
            chosen.append(point)
            available -= cost
    return chosen, left_out


def has_room(point: Point, crops: Crops, images: Mapping[str, int], free: float) -> bool:
    """Whether there are images for a batch, and six batches (the most in use) fit into a quarter of `free` bytes."""
    pixels = sum(view.size**2 for view in crops.views)
    return point.batch <= images[point.source] and 6 * point.batch * pixels * 3 * 4 < free / 4


def sized_tables(folder: Path, threads: int) -> dict[str, SampleTable]:
    """A table of made images for each size. Raises ValueError if there are no photographs to make them from."""
    from functools import partial

    from perf.images import make_jpegs
    from pipeline.dataset.open import open_dataset

    tables = {}
    for name, (width, height) in SIZE_NAMES.items():
        images = make_jpegs(
            folder / f"{width}x{height}", SIZE_IMAGES, threads, partial(of_size, width=width, height=height)
        )
        tables[name] = open_dataset(images, folder / "tables", workers=1, progress=False)
    return tables


def sweep(
    points: Sequence[Point],
    tables: Mapping[str, SampleTable],
    crops: Crops,
    cores: Sequence[int],
    rounds: int,
    seconds: float,
    done: Callable[[], object],
) -> list[dict[str, Any]]:
    """Each point with its rates. done: called after each turn, `rounds` + 1 for each point."""
    from perf.interleaved import play
    from perf.loader.swave_loaders import loader

    contenders = [
        loader(point.backend, tables[point.source], crops, point.batch, min(point.threads, len(cores)), point.threads)
        for point in points
    ]
    turns = play(contenders, rounds, seconds, cores, done)
    return [
        asdict(point) | _figures([turn.rate for turn in own_turns])
        for point, own_turns in zip(points, turns, strict=True)
    ]


def _figures(rates: Sequence[float]) -> dict[str, Any]:
    return {
        "images_per_second": round(median(rates), 1),
        "min": round(min(rates), 1),
        "max": round(max(rates), 1),
        "rounds": [round(rate, 1) for rate in rates],
    }
