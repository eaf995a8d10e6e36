"""The rates of data loaders on this machine in images a second: SwAV's crops from JPEG files, on the CPU.

    python -m perf.loader [--json FILE] [--data PATH] [--budget SECONDS] [--config RECIPE] [key=value ...]

Contenders take turns of a second or two, round after round, on the same cores and never at the same time.

    full     files -> 2 x 224 and 6 x 96 pixel crops with all of SwAV's augmentation, normalised float32 in batches
             ffcv, dali          swave's loader with these backends: order, reading, draw, backend, hand-over
             ffcv-affine         ffcv with crops.jitter.exact=false: one affine map instead of the color steps
             ffcv-kernel         only the kernel of ffcv, on bytes in memory
             dali-random         DALI with its own reader and random operators, one decode an image
             torchvision         the published recipe: DataLoader, PIL, torchvision's transforms
    crops    JPEG bytes in memory -> the same crops as uint8, without color and blur: the CPU's work if a GPU does these
             ffcv                swave's kernel
             ffcv-stock-one-view FFCV's own loader on a .beton, and one crop instead of eight
    decode   JPEG bytes in memory -> pixels: only libjpeg-turbo, the reference

The report also has CPU time and memory of each contender, the time of the kernel's stages, the speed of the storage,
the number of GPUs that the rates can feed, and with --sweep or --budget the rates of swave's backends against threads,
batch and image size.

Images: those of --data, or 1,200 JPEGs made from photographs of scikit-image and scikit-learn, kept in data/bench:
`--images-like bench`, about 500 x 375 pixels and 76 kB, or `imagenet`, 90 to 4,288 pixels and 100 kB on average (the
default with --budget). The files are in the page cache, except when storage itself is measured. --config and key=value,
as for train.py, choose other crops.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import Parser
from perf.loader.contenders import BACKENDS, crops_of
from perf.loader.plan import Plan, plan
from perf.loader.run import FOLDER, LIKE
from perf.program import program

if TYPE_CHECKING:
    from pipeline.crops import Crops

__all__ = ["FOLDER", "main"]


def main(arguments: list[str]) -> int:
    options = parsed(arguments)

    def show(report: dict[str, Any]) -> None:
        from perf.loader import figures as tables

        tables.show(report)

    return program(lambda stopped: run(options, stopped), show, options.json)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.loader", __doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--data", metavar="PATH", help="your own images: anything that data.path takes")
    parser.add_argument(
        "--config", metavar="RECIPE", help="the recipe that defines the crops (default: config/default.yaml)"
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="choose rounds, turns and sweep to fit")
    parser.add_argument("--images", type=int, help="how many images, evenly spread (default 1200)")
    parser.add_argument("--images-like", choices=tuple(LIKE), help="the kind of made images (see above)")
    parser.add_argument(
        "--backends", default=",".join(BACKENDS), help="some contenders (default: all, " + ",".join(BACKENDS) + ")"
    )
    parser.add_argument("--batch", type=int, default=64, help="images a batch (default 64)")
    parser.add_argument(
        "--threads", type=int, default=0, help="number of cores, and of threads or workers (default: all cores)"
    )
    parser.add_argument("--rounds", type=int, help="turns of each contender (default 5)")
    parser.add_argument("--seconds", type=float, help="least length of a turn (default 1.5)")
    parser.add_argument("--sweep", action=argparse.BooleanOptionalAction, help="vary threads, batch and image size")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure memory")
    parser.add_argument(
        "--gpu-rate", type=float, metavar="RATE", help="images/s that a GPU trains on, for the number of GPUs fed"
    )
    parser.add_argument(
        "--step-json", type=Path, metavar="FILE", help="take this rate from a report of perf.step on a GPU"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the recipe")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace, stopped: Sequence[BaseException] = ()) -> dict[str, Any]:
    """The whole benchmark. Raises ValueError for a mistake."""
    crops, planned = prepared(options)
    from perf.loader.run import run as measure

    return measure(options, planned, crops, stopped)


def prepared(options: argparse.Namespace) -> tuple[Crops, Plan]:
    """Crops and plan; completes `options`. Raises ValueError for arguments that cannot work."""
    options.backends = options.backends.split(",")
    check(options, len(os.sched_getaffinity(0)))
    for text in options.settings:
        if "=" not in text:
            raise ValueError(f"{text}: expected key=value; a recipe is given as --config={text}")
        if text.startswith("data.path="):
            if options.data is not None:
                raise ValueError(f"{text}: --data={options.data} is given too; give only one of them")
            options.data = text.partition("=")[2]
    crops = crops_of(options.config, options.settings)
    options.usual_crops = crops == crops_of(None, [])
    options.images_like = options.images_like or ("bench" if options.budget is None else "imagenet")
    return crops, plan(
        options.budget, options.images, options.rounds, options.seconds, options.memory, options.sweep, options.batch
    )


def check(options: argparse.Namespace, cores: int) -> None:
    """Raises ValueError, one line, for arguments that cannot work."""
    given = ",".join(options.backends)
    for name in options.backends:
        if name not in BACKENDS:
            raise ValueError(f"--backends={given}: unknown backend {name!r}; take some of {','.join(BACKENDS)}")
    if len(set(options.backends)) < len(options.backends):
        raise ValueError(f"--backends={given}: name each backend once")
    for name in ("images", "batch", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value}: expected at least 1")
    if options.seconds is not None and not 0 < options.seconds <= 600:
        raise ValueError(f"--seconds={options.seconds}: expected more than 0, at most 600")
    if options.budget is not None and not 20 <= options.budget <= 86_400:
        raise ValueError(f"--budget={options.budget:g}: expected 20 seconds to a day")
    if options.gpu_rate is not None and not 0 < options.gpu_rate < float("inf"):
        raise ValueError(f"--gpu-rate={options.gpu_rate:g}: expected images a second, more than 0")
    if not 0 <= options.threads <= cores:
        raise ValueError(f"--threads={options.threads}: expected 1 to {cores}, the cores that this process may use")
    if options.images is not None and options.images < options.batch:
        raise ValueError(f"--images={options.images} is less than --batch={options.batch}; raise it or lower --batch")
    if options.json and not options.json.absolute().parent.is_dir():
        raise ValueError(f"--json={options.json}: there is no folder {options.json.absolute().parent}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
