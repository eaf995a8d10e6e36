"""Train for many steps and look for leaks: memory, open files, threads and step time must stay level.

    python -m perf.faults.long_run [--steps 20000] [--minutes 30] [--backends ffcv dali torchvision]

A tiny network trains by train.py on 72 images, with 50 evaluations and 100 checkpoints on the way; `--minutes` ends a
backend's run early, by a signal. Rows of other backends in FILE stay, and PLOT shows all of them. Per backend:

    steps               taken, in how many epochs; saves, evaluations: checkpoints and k-NN scores on the way
    megabytes           memory (unique to the process) after a tenth of the run, and at its end
    slope               MB of it per 1,000 steps: a line through the last two thirds of the samples
    files, threads      open ones after a tenth of the run, and at its end
    milliseconds        CPU time of a step: median of the first and of the last third of the samples
    seconds             of the whole run, other work on the machine included
    draws               how often the image that was drawn least, and most, was drawn: level if they differ by at most 1
    level               whether all of these are as they should be; if not, the exit code is 1
    samples             step, MB, open files, threads, CPU milliseconds per step since the sample before
"""

from __future__ import annotations

import json
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import EXIT_FAILED, Parser
from common.progress import progress_bar
from config.recipe import ROOT
from perf.faults.points import count_rows
from perf.forked import fork
from perf.kill_check import make_recipe
from perf.machine import machine
from perf.program import program

BACKENDS = ("ffcv", "dali", "torchvision")
IMAGES, STEPS_OF_EPOCH, EVALUATIONS, SAVES = 72, 9, 50, 100
MOST_SLOPE, MOST_SLOWER = 1.0, 1.5  # MB per 1,000 steps; ratio of step times, on a machine with other work
SAMPLE, LONGEST = 0.5, 1200.0  # seconds: between two samples, to start or to end
KEPT = 200  # samples in the report


class Sample(NamedTuple):
    """A look at a run. cpu: seconds since its start."""

    step: int
    cpu: float
    megabytes: float
    files: int
    threads: int


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.faults.long_run", __doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="of each backend (default 20000)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of each backend at most (default 30)")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--json", type=Path, default=ROOT / "perf" / "results" / "long_run.json", metavar="FILE")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "long_run.png", metavar="PLOT")
    options = parser.parse_args(arguments)

    rows: dict[str, dict[str, Any]] = {}

    def measure(_stopped: Any) -> dict[str, Any]:
        rows.update({row["backend"]: row for row in read(options.json)})
        for backend in options.backends:
            rows[backend] = long_run(backend, options.steps, 60 * options.minutes) | {"machine": machine()}
        report = {"rows": [rows[backend] for backend in BACKENDS if backend in rows]}
        draw(report["rows"], options.plot)
        return report

    code = program(measure, show, options.json)
    return code or (0 if all(rows[backend]["level"] for backend in options.backends) else EXIT_FAILED)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that were written before."""
    try:
        return list(json.loads(path.read_text())["rows"])
    except OSError:
        return []


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
        begun = time.monotonic()
        (process,) = fork(["train.py", *settings], folder / "log", prepare=partial(count_rows, folder / "draws"))
        try:
            samples = watch(process, folder / "run", steps, seconds)
            samples = [sample for sample in samples if sample.step < samples[-1].step]  # after the last step it ends
        finally:
            process.kill()
        log = (folder / "log").read_text(errors="replace")
        if process.exitcode:
            raise RuntimeError(f"{backend}: exit code {process.exitcode}: {' '.join(log[-500:].split())}")
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        saved = sum((line["step"] % max(1, steps // SAVES)) == 0 for line in lines if "loss" in line)
        evaluated = sum("knn" in line for line in lines)
        draws = json.loads((folder / "draws").read_text()).values()
    row = {"backend": backend, **figures(samples), "seconds": round(time.monotonic() - begun)}
    row |= {"evaluations": evaluated, "saves": saved, "draws": [min(draws), max(draws)]}
    level = row["level"] and len(draws) == IMAGES and max(draws) <= min(draws) + 1
    return row | {"level": level, "samples": thinned(samples)}


def watch(process: BaseProcess, run: Path, steps: int, seconds: float) -> list[Sample]:
    """Samples of a run until it ends. It gets SIGTERM `seconds` after its first step."""
    import psutil

    samples: list[Sample] = []
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
                    memory, times = watched.memory_full_info().uss / 1e6, watched.cpu_times()
                    cpu = times.user + times.system
                    samples.append(Sample(step, cpu, memory, watched.num_fds(), watched.num_threads()))
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


def figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """The row's figures. Raises RuntimeError for a run that is too short for them."""
    if len(samples) < 12 or samples[-1].step < 3 * STEPS_OF_EPOCH:
        raise RuntimeError(f"{len(samples)} samples are too few; take more --steps or --minutes")
    third = len(samples) // 3
    later, first, last = samples[third:], samples[len(samples) // 10], samples[-1]
    slope, _ = statistics.linear_regression([one.step / 1000 for one in later], [one.megabytes for one in later])
    before, after = (statistics.median(step_times(part)) for part in (samples[:third], samples[-third:]))
    level = slope < MOST_SLOPE and last.files <= first.files + 2 and last.threads <= first.threads + 2
    return {
        "steps": last.step, "epochs": last.step // STEPS_OF_EPOCH,
        "megabytes": [round(first.megabytes, 1), round(last.megabytes, 1)], "slope": round(slope, 3),
        "files": [first.files, last.files], "threads": [first.threads, last.threads],
        "milliseconds": [round(before, 1), round(after, 1)], "level": bool(level and after < MOST_SLOWER * before),
    }  # fmt: skip


def step_times(samples: Sequence[Sample]) -> list[float]:
    """CPU milliseconds per step from each sample to the next one."""
    return [1000 * (b.cpu - a.cpu) / (b.step - a.step) for a, b in pairwise(samples) if b.step > a.step]


def thinned(samples: Sequence[Sample]) -> list[list[float]]:
    """At most KEPT samples, evenly spread: step, MB, files, threads, CPU milliseconds per step since the one before."""
    kept = samples[:: -(-len(samples) // KEPT)]
    pairs = [(a, b) for a, b in pairwise(kept) if b.step > a.step]
    return [
        [b.step, round(b.megabytes, 1), b.files, b.threads, round(time, 1)]
        for (_, b), time in zip(pairs, step_times(kept), strict=True)
    ]


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """A plot of memory, open files, threads and step time over the steps, a line for each backend."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained", sharex=True)
    names = ("memory, MB", "open files", "threads", "CPU time of a step, ms")
    for column, (name, place) in enumerate(zip(names, places.flat, strict=True), 1):
        for row in rows:
            steps, values = ([sample[index] for sample in row["samples"]] for index in (0, column))
            place.plot(steps, values, lw=1.2, label=row["backend"])
        place.set(title=name, ylim=(0, None))
        place.grid(alpha=0.25)
    for place in places[-1]:
        place.set_xlabel("step")
    places[0][0].legend(loc="lower right", fontsize=8)
    figure.savefig(out, dpi=80)
    pyplot.close(figure)


def show(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        print(json.dumps({key: value for key, value in row.items() if key not in ("samples", "machine")}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
