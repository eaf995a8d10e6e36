"""How much the loaders' crops differ from torchvision's for the same draw, operation by operation.

    python -m perf.parity [--json FILE] [--images 200] [--photographs]

Mean absolute difference to the torchvision backend in levels of 255, over SwAV's eight views (2 x 224 and 6 x 96) of
the benchmark's JPEGs; each view has the same weight. With --photographs: of photographs of 12 megapixels (see
perf/photographs), which ffcv decodes at 1/4 or 1/8. "limit" is for the default, ffcv with exact color. ffcv-exact has
crops.decode=exact, ffcv-affine crops.jitter.exact=false.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import EXIT_MISTAKE, Parser, print_error
from common.progress import progress_bar
from pipeline.crops import Blur, Crops, Jitter, Posterize, Solarize
from pipeline.draw import Draw, draw

if TYPE_CHECKING:
    from pipeline.dataset.table import SampleTable

CONTENDERS = {  # (backend, crops.jitter.exact, crops.decode)
    "ffcv": ("ffcv", True, "scaled"),
    "ffcv-exact": ("ffcv", True, "exact"),
    "ffcv-affine": ("ffcv", False, "scaled"),
    "dali": ("dali", False, "exact"),
    "torchvision": ("torchvision", True, "exact"),
}
SHOWN = ("ffcv", "ffcv-exact", "ffcv-affine", "dali")
BATCH = 40


@dataclass(frozen=True)
class Operation:
    """Crops with one kind of change only. step: the jitter factor that stays, None for all. limit: in levels of 255."""

    crops: Crops
    limit: float
    step: int | None = None

    def draw(self, *arguments: Any) -> Draw:
        """As pipeline.draw.draw, with the other factors of the jitter neutral."""
        drawn = draw(self.crops, *arguments)
        if self.step is None:
            return drawn
        factors = np.broadcast_to(np.array([1, 1, 1, 0], np.float32), drawn.factors.shape).copy()
        factors[..., self.step] = drawn.factors[..., self.step]
        return replace(drawn, factors=factors)


def operations(crops: Crops) -> dict[str, Operation]:
    """The operations of a recipe, each by itself on every crop (flips as drawn), and "everything" as drawn."""
    jitter = replace(crops.jitter, probability=1.0)
    plain = replace(crops, jitter=Jitter(probability=0.0), grayscale=0.0, blur=Blur(probability=0.0))
    jittered = replace(plain, jitter=jitter)
    return {
        "resize, flip": Operation(plain, 1.0),
        "blur": Operation(replace(plain, blur=replace(crops.blur, probability=1.0)), 1.5),
        "brightness": Operation(jittered, 1.0, 0),
        "contrast": Operation(jittered, 1.0, 1),
        "saturation": Operation(jittered, 1.0, 2),
        "hue": Operation(jittered, 1.0, 3),
        "jitter without hue": Operation(replace(plain, jitter=replace(jitter, hue=0.0)), 1.0),
        "jitter": Operation(jittered, 1.0),
        "gain": Operation(replace(plain, jitter=Jitter(1.0, 0.0, 0.0, 0.0, 0.0, gain=0.4)), 1.0),
        "grayscale": Operation(replace(plain, grayscale=1.0), 1.0),
        "turn": Operation(replace(plain, vertical_flip=0.5, quarter_turn=0.75), 1.0),
        "solarize": Operation(replace(plain, solarize=Solarize(1.0)), 1.0),
        "posterize": Operation(replace(plain, posterize=Posterize(1.0)), 1.0),
        "everything": Operation(crops, 1.0),
    }


def differences(
    table: SampleTable,
    rows: np.ndarray,
    operation: Operation,
    contenders: Sequence[str],
    threads: int,
    reference: str = "torchvision",
) -> dict[str, float]:
    """Mean absolute difference of each contender to `reference` in levels of 255, over all views of `rows`; epoch 0."""
    streams = [crops_of(table, rows, operation, name, threads) for name in (reference, *contenders)]
    sums = np.zeros(len(contenders))
    for expected, *others in zip(*streams, strict=True):
        for index, crops in enumerate(others):
            sums[index] += sum(np.abs(a - b).mean(axis=(1, 2, 3)).sum() for a, b in zip(crops, expected, strict=True))
    means = sums / (len(rows) * len(operation.crops.views))
    return dict(zip(contenders, means.tolist(), strict=True))


def crops_of(
    table: SampleTable, rows: np.ndarray, operation: Operation, contender: str, threads: int
) -> Iterator[list[np.ndarray]]:
    """Yield for each batch the crops of each resolution: (views * B, size, size, 3) float32, in levels of 255."""
    from pipeline.dataset.reader import Reader
    from pipeline.loader import BACKENDS, execute
    from pipeline.requests import Feed

    backend, exact, decode = CONTENDERS[contender]
    crops = replace(operation.crops, decode=decode, jitter=replace(operation.crops.jitter, exact=exact))
    feed, executor = Feed(table, Reader(table)), BACKENDS[backend](crops, BATCH, threads, None)
    mean, std = np.array(crops.mean, np.float32), np.array(crops.std, np.float32)
    parts = np.split(rows, range(BATCH, len(rows), BATCH))
    requests = (feed.request(0, 0, part, partial(operation.draw, 0, 0)) for part in parts)
    try:
        for _, groups in execute(executor, feed, requests):
            yield [(group.permute(0, 2, 3, 1).numpy() * std + mean) * 255 for group in groups]
    finally:
        executor.close()
        feed.reader.close()


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.parity", __doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--images", type=int, default=200, help="how many JPEGs (default 200)")
    parser.add_argument("--photographs", action="store_true", help="images of 12 megapixels")
    options = parser.parse_args(arguments)
    try:
        if options.images < 1:
            raise ValueError(f"--images={options.images}: expected at least 1")
        if options.json and not options.json.absolute().parent.is_dir():
            raise ValueError(f"--json={options.json}: there is no folder {options.json.absolute().parent}")
        report = run(options.images, options.photographs)
    except (ValueError, OSError, ImportError) as error:
        print_error(error)
        return EXIT_MISTAKE
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{options.json}: written")
    return 0


def run(images: int, large: bool) -> dict[str, Any]:
    """Make the images, compare, and return the report."""
    from config.recipe import default_config
    from perf.images import make_jpegs
    from perf.loader.__main__ import FOLDER
    from perf.machine import machine
    from perf.photographs.images import KINDS, make_photographs
    from pipeline.crops import crops_from_config
    from pipeline.dataset.open import open_dataset

    cores = sorted(os.sched_getaffinity(0))
    if large:
        folder = make_photographs(FOLDER / "camera", KINDS["12 MP"], images)
    else:
        folder = make_jpegs(FOLDER / "photographs", images, len(cores))
    table = open_dataset(folder, FOLDER / "tables", setting="--images")
    rows = table.usable()[:images]  # a longer benchmark may have made more
    crops = crops_from_config(default_config().crops)
    results: dict[str, Any] = {}
    with progress_bar(len(operations(crops)), "operations", "op", True) as bar:
        for name, operation in operations(crops).items():
            levels = differences(table, rows, operation, SHOWN, len(cores))
            results[name] = {contender: round(value, 3) for contender, value in levels.items()} | {
                "limit": operation.limit
            }
            bar.update()
    return {"levels": results, "images": len(rows), "machine": machine(cores)}


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Column, Table

    head = [Column(name, justify="right") for name in (*SHOWN, "limit")]
    title = f"Mean absolute difference to torchvision, levels of 255, {report['images']} images"
    table = Table("operation", *head, title=title)
    for name, levels in report["levels"].items():
        table.add_row(name, *(f"{levels[contender]:.2f}" for contender in SHOWN), f"{levels['limit']:g}")
    Console(width=None if Console().is_terminal else 110).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
