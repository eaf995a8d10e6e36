"""What a table of millions of rows costs a rank: time, memory of its own, and the parts of an epoch's order.

    python -m perf.tables.scale [--rows 1000000,10000000] [--ranks 2] [--base CHECKOUT] [--json FILE]

Makes tables of loose images like ImageNet's (in data/bench, removed at the end; a million rows take 72 MB) and lets
processes of this checkout, and of an older one (--base, a git worktree), open them at the same time as ranks of a node
do. After each phase it shows seconds and private memory: pages that no other process can share, above those at the
start of the phase "open" (modules are imported by then). "peak" is the most that was seen during the phase, looked at
every 5 ms. Mapped columns are in the page cache, once for all ranks of a node.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common.cli import Parser
from common.progress import progress_bar
from config.recipe import ROOT
from perf.loader.run import FOLDER
from perf.machine import machine
from perf.program import check_base, program
from perf.tables.synthetic import write_table

HERE, BASE = "here", "base"
SCAN = "scan and save"  # a phase, of pretended files
EVERY = 0.005  # seconds between two looks at a process's memory


class Rank:
    """A process of a checkout that opens a table; `memory` is its private memory in bytes, `peak` the most of it."""

    def __init__(self, checkout: Path, table: Path):
        script = Path(__file__).parent / "scale_worker.py"
        command = [sys.executable, str(script), str(checkout.resolve()), str(table.resolve())]
        self.process = subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.phases: list[str] = self._answer()

    def ask(self, phase: str) -> dict[str, Any]:
        """Seconds, CPU seconds, result, memory in MB after a phase and its peak. Raises RuntimeError if it fails."""
        assert self.process.stdin
        self.process.stdin.write(phase + "\n")
        self.process.stdin.flush()
        self.peak, done = self.memory, threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,))
        watcher.start()
        try:
            seconds, cpu, result = self._answer()
        finally:
            done.set()
            watcher.join()
        figures = {"seconds": seconds, "cpu_seconds": cpu, "result": result}
        return figures | {"memory": self.memory / 1e6, "peak": max(self.peak, self.memory) / 1e6}

    @property
    def memory(self) -> int:
        """Anonymous memory of the process."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return 1024 * int(line.split()[1])
        return 0  # it has ended

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a rank ended with code {self.process.wait()}")
        return json.loads(line)

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(EVERY):
            self.peak = max(self.peak, self.memory)


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.tables.scale", __doc__)
    parser.add_argument("--rows", default="1000000,10000000", help="rows of each table (default 1000000,10000000)")
    parser.add_argument("--ranks", type=int, default=2, help="processes that open a table together (default 2)")
    parser.add_argument("--base", type=Path, metavar="CHECKOUT", help="an older checkout to compare with")
    parser.add_argument("--scan", action="store_true", help="also a scan of as many pretended files, and its saving")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args(arguments)
    return program(lambda stopped: run(options, FOLDER), show, options.json)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole benchmark; tables are in `folder` meanwhile. Raises ValueError for a mistake."""
    check_base(options.base, "pipeline/dataset")
    try:
        sizes = [int(rows) for rows in options.rows.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 8192 or options.ranks < 1:
        raise ValueError(
            f"--rows={options.rows}: give numbers from 8192 on, with commas between, and --ranks from 1 on"
        )
    checkouts = {HERE: ROOT} | ({BASE: options.base} if options.base else {})
    tables: dict[int, Any] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for rows in sizes:
        table = folder / f"synthetic-{os.getpid()}.npz"
        try:
            with progress_bar(1 + len(checkouts), f"{rows:,} rows", "step", True) as bar:
                write_table(table, rows)
                bar.update()
                tables[rows] = {"bytes": table.stat().st_size, "checkouts": {}}
                for name, checkout in checkouts.items():
                    tables[rows]["checkouts"][name] = measure(checkout, table, options.ranks, options.scan)
                    bar.update()
        finally:
            for file in (table, table.with_suffix(".json")):
                file.unlink(missing_ok=True)
    return {"rows": tables, "ranks": options.ranks, "machine": machine()}


def measure(checkout: Path, table: Path, count: int, scan: bool) -> dict[str, dict[str, Any]]:
    """Figures by phase, with `scan` also of a scan: the slowest rank's times, and the largest memory above that before
    the first phase."""
    ranks = [Rank(checkout, table) for _ in range(count)]
    pool = ThreadPoolExecutor(count)
    try:
        before = [rank.memory / 1e6 for rank in ranks]
        figures = {}
        for phase in (phase for phase in ranks[0].phases if scan or phase != SCAN):
            answers = list(pool.map(partial(Rank.ask, phase=phase), ranks))
            figures[phase] = {
                "seconds": max(answer["seconds"] for answer in answers),
                "cpu_seconds": median(answer["cpu_seconds"] for answer in answers),
                "memory": max(answer["memory"] - own for answer, own in zip(answers, before, strict=True)),
                "peak": max(answer["peak"] - own for answer, own in zip(answers, before, strict=True)),
                "result": answers[0]["result"],
            }
        return figures
    finally:
        for rank in ranks:
            rank.close()
        pool.shutdown()


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Column, Table

    columns = ("seconds", "CPU seconds", "MB a rank", "peak MB")
    table = Table("rows", "checkout", "phase", *(Column(name, justify="right") for name in columns))
    for rows, result in report["rows"].items():
        for name, phases in result["checkouts"].items():
            for phase, own in phases.items():
                memory = f"{own['memory']:,.0f}", f"{own['peak']:,.0f}"
                table.add_row(f"{rows:,}", name, phase, f"{own['seconds']:.2f}", f"{own['cpu_seconds']:.2f}", *memory)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    for rows, result in report["rows"].items():
        size = next(iter(result["checkouts"].values()))["checkpoint"]["result"]
        console.print(f"{rows:,} rows: a file of {result['bytes'] / 1e6:,.0f} MB; {size} bytes in a checkpoint")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
