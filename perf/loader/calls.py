"""How much the loader holds up the thread that trains.

    python -m perf.loader.calls [--backends ffcv,dali] [--rounds 5] [--steps 20] [--json FILE]

The training thread makes 3,000 small calls of torch a step, as many as the step of a ResNet-50 launches kernels on a
GPU, and then takes a batch. The loader always works, as one does that is slower than its GPU: the worst case. `ffcv`
makes the crops for a GPU, which are dropped; `dali` makes them on the CPU. Who works beside the calls:

    nobody           no loader
    same priority    the loader in this process, whose threads have the training thread's priority
    loader           the loader as it is for a GPU: threads that only compute have a lower priority
    a core free      the same with one thread fewer than there are cores
    own process      the loader in another process of lower priority; its batches do not come to this one

    calls      the rate of calls beside that with no loader, in the same round
    waits      the share of the calls' time in which the thread did not run
    longest    ms that the latest of all calls took
    images/s   of the loader, while this thread is busy most of the time
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import torch

import pipeline.backends.ffcv
import pipeline.loader
from common.cli import Parser, at_least
from common.progress import progress_bar
from perf.interleaved import take_turns, within_rounds
from perf.loader.contenders import crops_of
from perf.loader.gpu_feed_memory import drop_crops
from perf.loader.run import FOLDER, made_images
from perf.machine import machine
from perf.program import program
from pipeline.dataset.open import open_dataset
from pipeline.loader import Loader
from pipeline.priority import NICE
from training.distributed import SWITCH_INTERVAL

CALLS, IMAGES, BATCH = 3000, 600, 64
EACH = 4  # additions that are one call: about 10 us
NOBODY, SAME, HERE, FREE, APART = WAYS = ("nobody", "same priority", "loader", "a core free", "own process")
Batches = Iterator[Any]


@dataclass(frozen=True)
class Turn:
    """Seconds of a step's calls (median), the share of them in which the thread waited, seconds of the longest call,
    and images/s of the loader."""

    seconds: float
    waits: float
    longest: float
    rate: float


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.loader.calls", __doc__)
    parser.add_argument("--backends", default="ffcv,dali", help="separated by commas (default %(default)s)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="turns of each way (default %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=20, help="of a turn (default %(default)s)")
    parser.add_argument("--images", help="a folder of JPEGs (default: 600 made ones)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args(arguments)
    return program(lambda _stopped: measure(options), show, options.json)


def measure(options: Any) -> dict[str, Any]:
    """The figures of each backend. Raises ValueError for a mistake."""
    backends, cores = options.backends.split(","), len(os.sched_getaffinity(0))
    if unknown := set(backends) - {"ffcv", "dali"}:
        raise ValueError(f"--backends={options.backends}: {unknown.pop()} is neither ffcv nor dali")
    folder = options.images or str(made_images("bench", IMAGES, cores))
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_INTERVAL)
    results = {}
    with progress_bar(len(backends) * len(WAYS) * (options.rounds + 1), "turns", "turn") as bar:
        for backend in backends:
            works = [partial(turn, way, backend, folder, cores, options.steps, bar.update) for way in WAYS]
            turns = dict(zip(WAYS, take_turns(works, options.rounds), strict=True))
            results[backend] = {way: figures(turns[way], turns[NOBODY]) for way in WAYS}
    return {"backends": results, "calls": CALLS, "batch": BATCH, "rounds": options.rounds, "machine": machine()}


def figures(turns: Sequence[Turn], alone: Sequence[Turn]) -> dict[str, float]:
    """Medians over rounds; see the top of this file."""
    seconds = [[one.seconds for one in some] for some in (alone, turns)]
    return {
        "calls": round(within_rounds(*seconds), 3),
        "waits": round(median(one.waits for one in turns), 3),
        "longest_ms": round(1000 * median(one.longest for one in turns), 4),
        "images_per_second": round(median(one.rate for one in turns), 1),
    }


def turn(way: str, backend: str, folder: str, cores: int, steps: int, done: Callable[[], Any], counts: bool) -> Turn:
    """One turn of `steps` steps; one step if it does not count."""
    threads = max(1, cores - 1) if way == FREE else cores
    with batches_of(way, backend, folder, threads) as batches:
        result = calls(batches, steps if counts else 1)
    done()
    return result


@contextmanager
def batches_of(way: str, backend: str, folder: str, threads: int) -> Iterator[Batches]:
    """Batches of the loader that works in this `way`; endless."""
    if way == NOBODY:
        yield iter(int, 1)
    elif way == APART:
        here, there = multiprocessing.Pipe()
        worker = multiprocessing.get_context("forkserver").Process(target=serve, args=(there, backend, folder, threads))
        worker.start()
        there.close()
        try:
            yield iter(partial(_next_of, here), None)
        finally:
            worker.kill()
            worker.join()
    else:
        pipeline.loader.NICE = 0 if way == SAME else NICE
        loader = loader_of(backend, folder, threads)
        try:
            yield endless(loader)
        finally:
            loader.close()
            pipeline.loader.NICE = NICE


def loader_of(backend: str, folder: str, threads: int) -> Loader:
    """The training loader; with ffcv as for a GPU, but its crops are dropped instead of copied there."""
    pipeline.backends.ffcv.finish_on_gpu = drop_crops  # type: ignore[assignment]
    table, crops = open_dataset(folder, FOLDER / "tables", progress=False), crops_of(None, [])
    device, target = (0, None) if backend == "ffcv" else (None, 0)
    loader = Loader(
        table, crops, backend=backend, seed=0, global_batch=BATCH, threads=threads, device_id=device, pinned_for=target
    )
    loader.device_id = loader.pinned_for = None  # this runs without the GPU
    return loader


def endless(loader: Loader) -> Batches:
    """A loader's batches, epoch after epoch; each is dropped at once."""
    while True:
        for batch in loader:
            del batch
            yield True


def serve(parent: Connection, backend: str, folder: str, threads: int) -> None:
    """The process of its own: makes a batch ahead, and says so."""
    os.nice(NICE)
    for _ in endless(loader_of(backend, folder, threads)):
        parent.send(True)
        parent.recv()


def _next_of(worker: Connection) -> bool:
    word = worker.recv()
    worker.send(True)
    return word


def calls(batches: Batches, steps: int) -> Turn:
    """Make the calls of `steps` steps, after one that does not count."""
    x, spent, ran, begun = torch.zeros(1), [], 0.0, 0.0
    took = np.zeros((steps, CALLS))
    for step in range(-1, steps):
        begun = begun if step > 0 else perf_counter()
        next(batches)
        start, cpu = perf_counter(), thread_time()
        last = start
        for call in range(CALLS):
            for _ in range(EACH):
                x.add_(1.0)
            now = perf_counter()
            took[step, call] = now - last
            last = now
        if step >= 0:
            spent.append(last - start)
            ran += thread_time() - cpu
    rate = BATCH * steps / (perf_counter() - begun)
    return Turn(median(spent), max(0.0, 1 - ran / sum(spent)), float(took.max()), rate)


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Column, Table

    names = ("calls", "waits", "longest", "images/s")
    table = Table("backend", "beside the calls", *(Column(name, justify="right") for name in names))
    for backend, ways in report["backends"].items():
        for way, own in ways.items():
            rate = "" if way == NOBODY else f"{own['images_per_second']:,.0f}"
            table.add_row(
                backend, way, f"{own['calls']:.2f}", f"{own['waits']:.1%}", f"{own['longest_ms']:.1f} ms", rate
            )
    Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
