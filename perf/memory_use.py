"""What memory the CPU half of a GPU's loader takes, measured in a process of its own.

    python -m perf.memory_use TABLE.npz --batch 256 --threads 2 --epochs 10

It reads, draws and makes uint8 crops as the ffcv backend does for a GPU: one batch read ahead, one made, whose consumer
(there: the copy to the GPU) has let go of it before the next is begun. Prints one line of JSON; in MB (1e6 bytes) of
resident memory:

    imports_mb        after all imports: the interpreter with torch, numba and numpy
    built_mb          with table, reader and kernel, before the first batch
    epochs_mb         after each epoch
    peak_mb           the highest from building on
    above_imports_mb  peak_mb - imports_mb
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from config.recipe import DEFAULTS
from pipeline.batch import Request
from pipeline.crops import Crops, crops_from_config
from pipeline.draw import draw
from pipeline.feed import Feed
from pipeline.kernel import Kernel
from pipeline.loader import Loader  # noqa: F401 - and with it torch, as in training
from pipeline.order import order, rank_rows
from pipeline.reader import Reader
from pipeline.table import SampleTable


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.memory_use", description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="a sample table (.npz) of JPEGs")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options.table, options.batch, options.threads, options.epochs)))
    return 0


def measure(path: Path, batch: int, threads: int, epochs: int) -> dict[str, object]:
    """See the head of this file."""
    from omegaconf import OmegaConf

    crops = crops_from_config(OmegaConf.load(DEFAULTS).crops)
    imports = resident("VmRSS")
    table = SampleTable.load(path)
    feed, kernel = Feed(table, Reader(table)), Kernel(crops, threads, "uint8")
    built = resident("VmRSS")
    forget_peak()
    after = []
    for epoch in range(epochs):
        for _ in batches(feed, kernel, crops, batch, epoch):
            pass
        after.append(resident("VmRSS"))
    peak = resident("VmHWM")
    return {
        "imports_mb": imports,
        "built_mb": built,
        "peak_mb": peak,
        "epochs_mb": after,
        "above_imports_mb": round(peak - imports, 1),
        "batch": batch,
        "images_an_epoch": len(table) // batch * batch,
    }


def batches(feed: Feed, kernel: Kernel, crops: Crops, batch: int, epoch: int) -> Iterator[list[np.ndarray]]:
    """uint8 crops of one epoch, a batch at a time in the same memory, the next one being read meanwhile."""
    permutation = order(0, epoch, feed.usable)
    outputs = kernel.buffers(batch)  # one set: on a GPU a batch is there before the next is begun

    def read(samples: int) -> Request:
        rows = rank_rows(permutation, samples, batch, 0, 1)
        return feed.request(epoch, samples, rows, partial(draw, crops, 0, epoch))

    starts = range(0, len(permutation) - batch + 1, batch)
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(read, 0)
        for start in starts:
            request = following.result()
            if start + batch in starts:
                following = ahead.submit(read, start + batch)
            kernel.run(request.encoded, np.ones(batch, bool), request.height, request.width, request.draw, outputs)
            yield outputs


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (highest) of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise OSError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Let VmHWM begin anew; where that is forbidden it goes on from the start of the process, and tells too much."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
