"""Where the seconds from `make train` to the end of the first step go: a waterfall of all processes of the run.

    python -m perf.start [--runs 2] [--json FILE] [RECIPE.yaml] [key=value ...]

Each run has a new directory and is stopped after its first step. Its images must be there already; the first run may
still compile or scan what the second one finds done. Time between two spans is Python at work in the program itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import Parser, at_least
from config.recipe import ROOT, load_config
from perf.machine import machine
from perf.program import Report, program
from perf.start.marks import FIRST_STEP, FOLDER

LONGEST = 600.0  # seconds that a start may take
WIDTH = 48  # characters of the waterfall
SITE = "from perf.start.marks import install\n\ninstall()\n"


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.start", __doc__)
    parser.add_argument("--runs", type=at_least(1), default=2, help="starts, one after the other (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the spans here")
    parser.add_argument("recipe", nargs="?", default="config/demo.yaml", help="default: the demo's")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)

    def measure(_stopped: Sequence[BaseException]) -> Report:
        load_config([options.recipe, *options.settings])
        runs = [start(options.recipe, options.settings) for _ in range(options.runs)]
        return {"recipe": options.recipe, "settings": options.settings, "runs": runs, "machine": machine()}

    return program(measure, show, options.json)


def start(recipe: str, settings: Sequence[str]) -> dict[str, Any]:
    """Start a run and stop it after its first step: `seconds` to the end of that step, `cpu_seconds` of all Python
    processes until their last span, and `spans` (`perf.start.marks`) with begin and end in seconds from the start.

    Raises RuntimeError with the run's last line if it ends, or takes too long, before its first step.
    """
    with tempfile.TemporaryDirectory(prefix="swave-start-") as name:
        folder = Path(name)
        (folder / "marks").mkdir()
        (folder / "sitecustomize.py").write_text(SITE)
        environment = os.environ | {FOLDER: str(folder / "marks"), "PYTHONPATH": f"{folder}:{ROOT}"}
        arguments = [*settings, f"run.directory={folder}/run", "run.log_every=1"]
        command = ["make", "--no-print-directory", "train", f"CONFIG={recipe}", f"ARGS={' '.join(arguments)}"]
        with (folder / "output").open("w") as output:
            begun = time.time()
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                spans = _until_first_step(process, folder, begun)
            finally:
                _end(process)
    at_end = max(span["end"] for span in spans if span["what"] == FIRST_STEP)
    cpu = {span["pid"]: span["so_far"] for span in sorted(spans, key=lambda span: span["end"])}
    return {"seconds": at_end, "cpu_seconds": sum(cpu.values()), "spans": spans}


def _until_first_step(process: subprocess.Popen[Any], folder: Path, begun: float) -> list[dict[str, Any]]:
    while True:
        lines = [line for file in (folder / "marks").glob("*.jsonl") for line in file.read_text().splitlines()]
        spans = [json.loads(line) for line in lines if line.endswith("}")]
        if any(span["what"] == FIRST_STEP and span["process"] == "rank 0" for span in spans):
            for span in spans:
                span["begin"], span["end"] = span["begin"] - begun, span["end"] - begun
            return sorted(spans, key=lambda span: span["begin"])
        if process.poll() is not None or time.time() - begun > LONGEST:
            last = ((folder / "output").read_text().strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"no first step: {last}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[Any]) -> None:
    """Stop the run as Ctrl-C would, and kill what is left of it after a minute. make ends at once, launch.start, in the
    same group of processes, with the run."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 60
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def show(report: Report) -> None:
    for number, run in enumerate(report["runs"], 1):
        cpu = f"{run['cpu_seconds']:.1f} CPU s"
        print(f"run {number}: {run['seconds']:.1f} s ({cpu}) from make train to the end of the first step")
        print(waterfall(run))


def waterfall(run: dict[str, Any]) -> str:
    """A line for each span of a hundredth of the whole or more: process, what, bar, seconds, CPU seconds."""
    whole, lines = run["seconds"], []
    for span in run["spans"]:
        begin, end = max(span["begin"], 0.0), min(span["end"], whole)
        if end - begin < whole / 100:
            continue
        left = int(begin / whole * WIDTH)
        bar = " " * left + "#" * max(1, round((end - begin) / whole * WIDTH))
        times = f"{begin:6.1f} + {end - begin:5.1f} s, {span['cpu']:5.1f} CPU s"
        lines.append(f"  {span['process']:<14.14} {span['what']:<26.26} |{bar:<{WIDTH + 1}.{WIDTH + 1}}| {times}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
