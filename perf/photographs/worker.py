"""A process of one contender: runs a checkout's own code, also that of an older one. Started by `__main__`.

    python perf/photographs/worker.py CHECKOUT swave|torchvision THREADS

Reads a line of JSON for each turn: the folder of photographs, the seconds, and whether to measure memory instead.
Prints a line: images, seconds and CPU seconds of the turn, or the memory in bytes. Of an older checkout only the
pipeline is used, whose modules may have other names.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

BATCH = 2  # images
SKIPPED = 3  # batches at the start of a turn that do not count
Turn = Callable[[float], list[float]]  # seconds -> images, seconds, CPU seconds


def first_of(*modules: str) -> Any:
    """The first of these modules that the checkout has."""
    for name in modules:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(f"none of {', '.join(modules)}")


def crops() -> Any:
    from config.recipe import DEFAULTS, load_config
    from pipeline.crops import crops_from_config

    return crops_from_config(load_config([str(DEFAULTS), "data.path=none"]).crops)


def table(folder: Path) -> Any:
    opened = first_of("pipeline.dataset.open", "pipeline.dataset").open_dataset
    return opened(folder, folder.parent / f"tables-{Path(sys.argv[1]).resolve().name}", progress=False)


def torchvision(folder: Path, threads: int) -> Turn:
    """The published recipe: DataLoader, PIL and torchvision's transforms."""
    from perf.loader.peers import torchvision as peer

    contender = peer([str(path) for path in sorted(folder.glob("*.jpg"))], crops(), BATCH, threads)

    def turn(seconds: float) -> list[float]:
        done = contender.turn(seconds)
        return [done.images, done.seconds, done.cpu_seconds]

    return turn


def swave(folder: Path, threads: int) -> Turn:
    """The training loader with the ffcv backend."""
    from pipeline.loader import Loader

    source = Loader(table(folder), crops(), backend="ffcv", seed=0, global_batch=BATCH, threads=threads)

    def turn(seconds: float) -> list[float]:
        batches = (batch for _ in itertools.count() for batch in source)  # epoch after epoch
        for _ in range(SKIPPED):
            next(batches)
        images, start, cpu = 0, perf_counter(), process_time()
        while perf_counter() - start < seconds or not images:
            images += len(next(batches).rows)
        taken = [images, perf_counter() - start, process_time() - cpu]
        batches.close()
        source.close()  # nothing is read ahead during the turns of others
        return taken

    return turn


def memory(folder: Path) -> int:
    """Bytes by which the peak of this process grows while one thread of the kernel makes crops of each photograph."""
    import numpy as np

    from pipeline.draw import draw

    found, wanted = table(folder), crops()
    rows = np.arange(len(found))
    images = first_of("pipeline.dataset.reader", "pipeline.reader").Reader(found).read(rows)
    height, width = found.height.astype(np.int64), found.width.astype(np.int64)
    kernel = first_of("pipeline.kernel.kernel", "pipeline.kernel").Kernel(wanted, 1)
    outputs = kernel.buffers(1)
    for output in outputs:
        output[:] = 0  # has its memory before the peak is measured
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    for row in rows.tolist():
        one = slice(row, row + 1)
        drawn = draw(wanted, 0, 0, rows[one], height[one], width[one])
        kernel.run(images[one], np.ones(1, bool), height[one], width[one], drawn, outputs)
    kernel.close()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    checkout, name, threads = sys.argv[1:]
    sys.path[0] = str(Path(checkout).resolve())
    turns: dict[str, Turn] = {}
    for line in sys.stdin:
        order = json.loads(line)
        folder = Path(order["folder"])
        if order["memory"]:
            answer: list[float] = [memory(folder)]
        else:
            if order["folder"] not in turns:
                turns[order["folder"]] = {"swave": swave, "torchvision": torchvision}[name](folder, int(threads))
            answer = turns[order["folder"]](order["seconds"])
        print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":  # torchvision's worker processes import this file too
    main()
