"""The first start: how long a scan takes that decodes every image, and one that reads only headers.

    python -m perf.tables.scan [--base CHECKOUT] [--images 20000] [--rounds 3] [--workers N] [--json FILE]

JPEGs of 500 x 375 pixels and 76 kB on average (perf/images.py makes 2,000 in data/bench once; more are copies of them).
Each turn is a process that scans their folder, listing included; contenders take turns, and ratios are taken within a
round. Warm: the files are in the page cache. Cold: they are dropped from it before each turn (posix_fadvise); names and
sizes stay in memory. --base: an older checkout (git worktree), whose scan takes the place of this one's that decodes. A
second table shows where the time of an image goes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common.cli import Parser
from common.files import replacing
from common.progress import progress_bar
from config.recipe import ROOT
from perf.images import make_jpegs
from perf.interleaved import take_turns, within_rounds
from perf.loader.run import FOLDER
from perf.machine import machine
from perf.program import check_base, program

BASE, DECODE, HEADERS = "base", "decode", "headers"
DIFFERENT = 2000  # JPEGs
PARTS_OF = 1000  # images for the table of parts


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.tables.scan", __doc__)
    parser.add_argument("--base", type=Path, metavar="CHECKOUT", help="an older checkout to compare with")
    parser.add_argument("--images", type=int, default=2000, help="JPEGs in the folder (default 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args(arguments)
    return program(lambda stopped: run(options, FOLDER), show, options.json)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole benchmark, on images that are kept in `folder`. Raises ValueError for a mistake."""
    check_base(options.base, "pipeline/dataset")
    if min(options.images, options.rounds, options.workers) < 1:
        raise ValueError("--images, --rounds and --workers must be at least 1")
    images = copies(folder, options.images, options.workers).resolve()
    files = sorted(images.glob("*.jpg"))
    os.sync()  # only what is on the disk can be dropped from the page cache
    contenders = {HEADERS: ROOT} | ({BASE: options.base} if options.base else {DECODE: ROOT})
    mean = sum(file.stat().st_size for file in files) / len(files)
    report: dict[str, Any] = {"images": len(files), "mean_bytes": mean}
    with progress_bar(len(contenders) * 2 * options.rounds, "scans", "scan", True) as bar:

        def turn(name: str, cold: bool, _counts: bool) -> dict[str, float]:
            (drop if cold else warm)(files)
            result = scan(contenders[name].resolve(), name, images, options.workers)
            bar.update()
            return result

        for state in ("warm", "cold"):
            works = [partial(turn, name, state == "cold") for name in contenders]
            turns = dict(zip(contenders, take_turns(works, options.rounds, 0), strict=True))
            report[state] = figures(turns, len(files))
    report["parts"] = parts(files[:PARTS_OF])
    return report | {"workers": options.workers, "rounds": options.rounds, "machine": machine()}


def copies(folder: Path, count: int, threads: int) -> Path:
    """A folder below `folder` with `count` JPEGs, each a file of its own; made once."""
    sources = make_jpegs(folder / "scanned", min(count, DIFFERENT), threads)
    target = folder / f"scanned-{count}"
    target.mkdir(exist_ok=True)
    for index in range(count):
        file = target / f"{index:07d}.jpg"
        if not file.exists():
            with replacing(file, durable=False) as copy:
                copy.write((sources / f"{index % DIFFERENT:05d}.jpg").read_bytes())
    return target


def scan(checkout: Path, check: str, images: Path, workers: int) -> dict[str, float]:
    """Seconds and CPU seconds of one scan, in a process of its own. Raises RuntimeError if it fails."""
    script = Path(__file__).parent / "scan_worker.py"
    command = [sys.executable, str(script), str(checkout), check, str(images), str(workers)]
    done = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the scan of {checkout} ended with code {done.returncode}")
    return json.loads(done.stdout)


def drop(files: Sequence[Path]) -> None:
    """Drop the files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def warm(files: Sequence[Path]) -> None:
    """Read the files into the page cache."""
    for file in files:
        file.read_bytes()


def figures(turns: dict[str, list[dict[str, float]]], images: int) -> dict[str, Any]:
    """Medians of each contender, and how many times as long as `headers` it takes, from turns of the same round."""
    result: dict[str, Any] = {}
    for name, own in turns.items():
        result[name] = {"seconds": median(turn["seconds"] for turn in own)}
        result[name]["images_per_second"] = images / result[name]["seconds"]
        result[name]["cpu_ms"] = 1000 * median(turn["cpu_seconds"] for turn in own) / images
        for key in ("seconds", "cpu_seconds"):
            ratios = [one[key] for one in own], [one[key] for one in turns[HEADERS]]
            result[name][f"{key}_of_headers"] = within_rounds(*ratios)
    return result


def parts(files: Sequence[Path]) -> dict[str, float]:
    """CPU microseconds an image of what a scan does, and of Pillow's way to the same facts; files in the page cache."""
    from PIL import Image

    from pipeline.dataset.headers import FIRST, probe_headers
    from pipeline.dataset.images import probe
    from pipeline.dataset.structure import jpeg_structure

    data = [file.read_bytes() for file in files]

    def opened(work: Callable[[int], object]) -> None:
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            work(descriptor)
            os.close(descriptor)

    def lazily() -> None:
        for file in files:
            with Image.open(file) as image:
                image.getexif()

    works: dict[str, Callable[[], object]] = {
        "open and close": lambda: opened(os.fstat),
        "and read 4 KiB": lambda: opened(lambda descriptor: os.pread(descriptor, FIRST, 0)),
        "parse the header": lambda: [jpeg_structure(one[:FIRST]) for one in data],
        "all of a header's check": lambda: opened(lambda descriptor: probe_headers(descriptor, 0, None)),
        "Pillow's open and getexif": lazily,
        "decode": lambda: [probe(one) for one in data[: len(data) // 4]],
    }
    taken = {}
    for name, work in works.items():
        times = []
        for _ in range(3):
            begun = time.process_time()
            work()
            times.append(time.process_time() - begun)
        taken[name] = 1e6 * min(times) / (max(1, len(data) // 4) if name == "decode" else len(data))
    return taken


def show(report: dict[str, Any]) -> None:
    """Print the report as two tables."""
    from rich.console import Console
    from rich.table import Column, Table

    columns = ("seconds", "images/s", "CPU ms an image", "times headers", "times headers' CPU")
    table = Table("page cache", "scan", *(Column(name, justify="right") for name in columns))
    for state in ("warm", "cold"):
        for name, own in report[state].items():
            ratios = f"{own['seconds_of_headers']:.1f}", f"{own['cpu_seconds_of_headers']:.1f}"
            speed = f"{own['seconds']:.2f}", f"{own['images_per_second']:,.0f}", f"{own['cpu_ms']:.3f}"
            table.add_row(state, name, *speed, *ratios)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(f"{report['images']:,} JPEGs of {report['mean_bytes'] / 1000:.0f} kB, {report['workers']} workers")
    console.print(table)
    rest = Table("of an image", Column("CPU us", justify="right"))
    for name, micro in report["parts"].items():
        rest.add_row(name, f"{micro:.1f}")
    console.print(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
