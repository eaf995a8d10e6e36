"""Crops of camera photographs a second: this checkout's ffcv backend, an older checkout's, and torchvision on PIL.

    python -m perf.photographs [--base CHECKOUT] [--rounds 5] [--seconds 0.5] [--kinds "12 MP;48 MP"] [--json FILE]

2 x 224 and 6 x 96 pixel crops with all of SwAV's augmentation, from JPEG files of 12 and 48 megapixels that
perf/photographs/images.py makes (in data/bench, 30 s once). Contenders take turns on the same cores; ratios are taken
within a round, of CPU time and of wall time, and their medians shown. Memory is what one thread of the kernel adds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common.cli import Parser
from common.progress import progress_bar
from config.recipe import ROOT
from perf.interleaved import Turn, take_turns, within_rounds
from perf.loader.run import FOLDER
from perf.machine import machine
from perf.photographs.images import KINDS, Kind, make_photographs
from perf.program import check_base, program

IMAGES = 8  # of a kind
HERE, BASE, PEER = "swave", "base", "torchvision"


class Worker:
    """A process that runs one contender."""

    def __init__(self, checkout: Path, name: str, threads: int):
        self.checkout, self.name = checkout, name
        script = Path(__file__).parent / "worker.py"
        command = [sys.executable, str(script), str(checkout), name, str(threads)]
        self.process = subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, folder: Path, seconds: float, memory: bool = False) -> list[Any]:
        """The answer to one order. Raises RuntimeError if the process has ended; its message is on stderr."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(
                json.dumps({"folder": str(folder.resolve()), "seconds": seconds, "memory": memory}) + "\n"
            )
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            if line.startswith("["):
                return json.loads(line)
        raise RuntimeError(f"the process of {self.name} ended with code {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.photographs", __doc__)
    parser.add_argument(
        "--base", type=Path, metavar="CHECKOUT", help="an older checkout (git worktree) to compare with"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="least length of a turn (default 0.5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--kinds", default=";".join(KINDS), help="some kinds of photographs (default: all)")
    parser.add_argument("--no-peer", action="store_true", help="leave torchvision out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args(arguments)
    return program(lambda stopped: run(options, KINDS, FOLDER), show, options.json)


def run(options: argparse.Namespace, known: dict[str, Kind], folder: Path) -> dict[str, Any]:
    """The whole benchmark on photographs of the `known` kinds, kept in `folder`. Raises ValueError for a mistake."""
    for name in options.kinds.split(";"):
        if name not in known:
            raise ValueError(f"--kinds={options.kinds}: unknown kind {name!r}; take some of {';'.join(known)}")
    check_base(options.base, "pipeline/loader.py")
    if options.rounds < 1 or options.threads < 1 or not 0 < options.seconds <= 600:
        raise ValueError("--rounds and --threads must be at least 1, --seconds more than 0 and at most 600")
    if options.json and not options.json.absolute().parent.is_dir():
        raise ValueError(f"--json={options.json}: there is no folder {options.json.absolute().parent}")
    folders = {
        name: make_photographs(
            folder / "camera" if name == "12 MP" else folder / f"camera-{list(known).index(name)}",
            known[name], IMAGES, options.threads,
        )
        for name in options.kinds.split(";")
    }  # fmt: skip
    checkouts = (
        {HERE: ROOT} | ({BASE: options.base} if options.base else {}) | ({} if options.no_peer else {PEER: ROOT})
    )
    workers = {
        name: Worker(checkout, PEER if name == PEER else "swave", options.threads)
        for name, checkout in checkouts.items()
    }
    try:
        return measure(workers, folders, options)
    finally:
        for worker in workers.values():
            worker.close()


def measure(workers: dict[str, Worker], folders: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Take turns, and compute the figures of each kind."""
    keys = [(kind, name) for kind in folders for name in workers]
    with progress_bar(len(keys) * (options.rounds + 1), "turns", "turn", True) as bar:

        def turn(kind: str, name: str, counts: bool) -> Turn:
            answer = workers[name].ask(folders[kind], options.seconds if counts else 0.0)
            bar.update()
            return Turn(*answer)

        turns = dict(zip(keys, take_turns([partial(turn, *key) for key in keys], options.rounds), strict=True))
    kinds = {kind: figures({name: turns[kind, name] for name in workers}) for kind in folders}
    for kind, folder in folders.items():
        for name, worker in workers.items():
            if name != PEER and "EXIF" not in kind:  # an older kernel leaves these to Pillow
                fresh = Worker(worker.checkout, worker.name, 1)  # has no freed memory to use again
                kinds[kind]["contenders"][name]["mb_a_thread"] = round(fresh.ask(folder, 0, memory=True)[0] / 1e6, 1)
                fresh.close()
    cores = sorted(os.sched_getaffinity(0))
    return {"kinds": kinds, "threads": options.threads, "rounds": options.rounds, "machine": machine(cores)}


def figures(turns: dict[str, Sequence[Turn]]) -> dict[str, Any]:
    """Medians of each contender, and the others' time as multiples of this checkout's, from turns of the same round."""
    cpu = {name: [1000 * turn.cpu_seconds / turn.images for turn in own] for name, own in turns.items()}
    wall = {name: [1000 * turn.seconds / turn.images for turn in own] for name, own in turns.items()}
    return {
        "contenders": {
            name: {"cpu_ms": round(median(cpu[name]), 2), "images_per_second": round(1000 / median(wall[name]), 1)}
            for name in turns
        },
        "ratios": {
            name: {
                "cpu": round(within_rounds(cpu[name], cpu[HERE]), 2),
                "wall": round(within_rounds(wall[name], wall[HERE]), 2),
            }
            for name in turns
            if name != HERE
        },
    }


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Column, Table

    columns = ("CPU ms an image", "images/s", "times swave's CPU", "times swave's wall", "MB a thread")
    table = Table("photographs", "contender", *(Column(name, justify="right") for name in columns))
    for kind, result in report["kinds"].items():
        for name, own in result["contenders"].items():
            ratio = result["ratios"].get(name, {"cpu": 1, "wall": 1})
            cells = (
                f"{own['cpu_ms']:.1f}",
                f"{own['images_per_second']:.1f}",
                f"{ratio['cpu']:.2f}",
                f"{ratio['wall']:.2f}",
            )
            table.add_row(kind, name, *cells, str(own.get("mb_a_thread", "")))
    Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
