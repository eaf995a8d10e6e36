"""Train for many steps and look for leaks: memory, open files, threads and step time must stay level.

    python -m perf.faults.long_run [--steps 20000] [--minutes 30] [--backends ffcv dali torchvision]

A tiny network trains by train.py on 72 images, with 50 evaluations and 100 checkpoints on the way; `--minutes` ends a
backend's run early, by a signal. The run itself checks after every epoch that each image was drawn once. Per backend:

    steps               taken, in how many epochs; saves, evaluations: checkpoints and k-NN scores on the way
    megabytes           resident memory (unique to the process) after a tenth of the run, and at its end
    slope               MB of it per 1,000 steps: a line through the last two thirds of the samples
    files, threads      open ones after a tenth of the run, and at its end
    milliseconds        of a step: median of the first and of the last third of the samples
"""

from __future__ import annotations

import json
import re
import signal
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from common.cli import Parser
from common.progress import progress_bar
from config.recipe import ROOT
from perf.forked import fork
from perf.kill_check import make_recipe
from perf.machine import machine
from perf.program import program

BACKENDS = ("ffcv", "dali", "torchvision")
STEPS_OF_EPOCH, EVALUATIONS, SAVES = 9, 50, 100
MOST_SLOPE, MOST_SLOWER = 1.0, 1.5  # MB per 1,000 steps; ratio of step times, on a machine with other work
SAMPLE, LONGEST = 0.5, 600.0  # seconds: between two samples, to start or to end


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.faults.long_run", __doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="of each backend (default 20000)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of each backend at most (default 30)")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--json", type=Path, default=ROOT / "perf" / "results" / "long_run.json", metavar="FILE")
    options = parser.parse_args(arguments)

    def measure(_stopped: Any) -> dict[str, Any]:
        rows = [long_run(backend, options.steps, 60 * options.minutes) for backend in options.backends]
        return {"rows": rows, "machine": machine()}

    return program(measure, show, options.json)


def long_run(backend: str, steps: int, seconds: float) -> dict[str, Any]:
    """A run of so many steps, or seconds if these are over first: its row. Raises RuntimeError if it fails."""
    epochs = max(3, steps // STEPS_OF_EPOCH)
    with tempfile.TemporaryDirectory(prefix="swave-long-") as scratch:
        folder = Path(scratch)
        settings = [
            str(make_recipe(folder)), f"run.directory={folder}/run", f"run.epochs={epochs}", "run.log_every=1",
            f"pipeline.backend={backend}", f"evaluation.every={max(1, epochs // EVALUATIONS)}",
            f"checkpoint.every={max(1, steps // SAVES)} steps", "optimizer.base_lr=0.05",
        ]  # fmt: skip
        (process,) = fork(["train.py", *settings], folder / "log")
        try:
            samples = watch(process, folder / "run", steps, seconds)
        finally:
            process.kill()
        log = (folder / "log").read_text(errors="replace")
        if process.exitcode:
            raise RuntimeError(f"{backend}: exit code {process.exitcode}: {' '.join(log[-500:].split())}")
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        saved = sum((line["step"] % max(1, steps // SAVES)) == 0 for line in lines if "loss" in line)
        evaluated = sum("knn" in line for line in lines)
    return {"backend": backend, **figures(samples), "evaluations": evaluated, "saves": saved}


def watch(process: BaseProcess, run: Path, steps: int, seconds: float) -> list[tuple[int, float, float, int, int]]:
    """Samples of a run until it ends: step, time, megabytes, open files, threads. It gets SIGTERM `seconds` after its
    first step."""
    import psutil

    samples: list[tuple[int, float, float, int, int]] = []
    asked = False
    end = time.monotonic() + LONGEST
    watched = psutil.Process(process.pid)
    with progress_bar(steps, f"{run.parent.name}", "step") as bar:
        while process.exitcode is None:
            step = newest_step(run)
            if step and not samples:
                end = time.monotonic() + seconds
            with suppress(psutil.Error):
                if step:
                    memory = watched.memory_full_info().uss / 1e6
                    samples.append((step, time.monotonic(), memory, watched.num_fds(), watched.num_threads()))
            bar.update(step - bar.n)
            if time.monotonic() > end and not asked:
                asked = True
                process.terminate()
            if time.monotonic() > end + LONGEST:
                raise RuntimeError(f"the run does not end after {signal.SIGTERM.name}")
            process.join(SAMPLE)
    return samples


def newest_step(run: Path) -> int:
    """The last step in metrics.jsonl, read from its end; 0 without one."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4000))
            found = re.findall(rb'{"step": (\d+), ', file.read())
    except OSError:
        return 0
    return int(found[-1]) if found else 0


def figures(samples: list[tuple[int, float, float, int, int]]) -> dict[str, Any]:
    """The row's figures. Raises RuntimeError for a run that is too short for them."""
    samples = [sample for sample in samples if sample[0] < samples[-1][0]]  # after the last step it ends
    if len(samples) < 12 or samples[-1][0] < 3 * STEPS_OF_EPOCH:
        raise RuntimeError(f"{len(samples)} samples are too few; take more --steps or --minutes")
    tenth, third = len(samples) // 10, len(samples) // 3
    later, first, last = samples[third:], samples[tenth], samples[-1]
    slope, _ = statistics.linear_regression([step / 1000 for step, *_ in later], [memory for _, _, memory, *_ in later])
    times = [
        [1000 * (b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(part) if b[0] > a[0]]
        for part in (samples[:third], samples[-third:])
    ]
    before, after = (statistics.median(part) for part in times)
    row = {
        "steps": samples[-1][0], "epochs": samples[-1][0] // STEPS_OF_EPOCH,
        "megabytes": [round(first[2], 1), round(last[2], 1)], "slope": round(slope, 3),
        "files": [first[3], last[3]], "threads": [first[4], last[4]],
        "milliseconds": [round(before, 1), round(after, 1)],
    }  # fmt: skip
    level = slope < MOST_SLOPE and last[3] <= first[3] + 2 and last[4] <= first[4] + 2
    return row | {"level": bool(level and after < MOST_SLOWER * before)}


def show(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        print(json.dumps(row))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
