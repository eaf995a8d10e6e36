"""Memory of each contender of the loader benchmark, measured in a separate process.

    python -m perf.loader.memory TABLE.npz --backend ffcv --mode full --batch 64 --threads 2 [--config RECIPE]

Prints one line of JSON, in MB (1e6 bytes): `imports_mb`, the memory of the process after its imports, and `memory_mb`,
how much more the process and its workers held at most while they made batches. Pages of files, which the kernel can
drop, and JPEGs that a contender takes from memory do not count. Memory that processes share counts once; the imports of
worker processes count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from common.cli import Parser, at_least
from config.recipe import ROOT
from perf.loader.contenders import Key, Material, crops_of, in_memory, make
from pipeline.crops import Crops

GPU_BATCH, GPU_EPOCHS = 256, 10
INTERVAL = 0.02  # seconds between two readings of the memory
LIBRARIES = {"dali": "nvidia.dali", "dali-random": "nvidia.dali", "torchvision": "torchvision"}


def memory_of(
    keys: Sequence[Key],
    table: Path,
    batch: int,
    recipe: Sequence[str],
    at_once: int,
    until: float,
    done: Callable[[], object],
) -> dict[Key, float | None]:
    """MB of each contender; None for those that have not begun at `until`, a time of perf_counter.

    table: path of a sample table. recipe: --config and settings. at_once: how many to measure at the same time. done:
    called after each. Raises OSError if a measurement fails.
    """

    def measured(key: Key) -> float | None:
        if perf_counter() > until:
            return None
        flags = ["--backend", key[0], "--mode", key[1], "--threads", str(key[2]), "--batch", str(batch), *recipe]
        command = [sys.executable, "-m", "perf.loader.memory", str(table.absolute()), *flags]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if process.returncode:
            raise OSError(f"measuring the memory of {key[0]} failed: {process.stderr.strip().splitlines()[-1:]}")
        done()
        return float(json.loads(process.stdout.splitlines()[-1])["memory_mb"])

    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(keys, pool.map(measured, keys), strict=True))


def gpu_half(table: Path, images: int, threads: int, recipe: Sequence[str]) -> dict[str, Any]:
    """Memory of the ffcv backend on a GPU's host: the JSON of perf.loader.gpu_feed_memory. Raises OSError."""
    settings = {"batch": min(GPU_BATCH, images), "threads": threads, "epochs": GPU_EPOCHS}
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "perf.loader.gpu_feed_memory", str(table.absolute()), *flags, *recipe]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise OSError(f"measuring the memory failed: {process.stderr.strip().splitlines()[-1:]}")
    return json.loads(process.stdout)


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.loader.memory", (__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="a sample table (.npz) of JPEGs")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--mode", default="full")
    parser.add_argument("--batch", type=at_least(1), default=64)
    parser.add_argument("--threads", type=at_least(1), default=2)
    parser.add_argument("--config")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args(arguments)
    crops = crops_of(options.config, options.settings)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure((options.backend, options.mode, options.threads), options, crops, Path(scratch))))
    return 0


def measure(key: Key, options: argparse.Namespace, crops: Crops, scratch: Path) -> dict[str, float]:
    """The figures of this program, see the top of this file. key: backend, mode and cores."""
    import importlib

    from perf.images import Jpegs, jpegs_in_memory
    from perf.loader import swave_loaders  # imports torch and numba, as users of every loader do
    from pipeline.dataset.table import SampleTable

    if key[0] in LIBRARIES:
        importlib.import_module(LIBRARIES[key[0]])
    table = SampleTable.load(options.table)
    jpegs = Jpegs([], table.height[:0], table.width[:0])
    if in_memory(key):
        jpegs = jpegs_in_memory(table, lambda jpegs: swave_loaders.accepted(jpegs, crops, options.threads))
    before = held_bytes()
    highest, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(INTERVAL):
            highest[0] = max(highest[0], held_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    contender = make(key, Material(table, jpegs, crops, options.batch, scratch))
    for seconds in (0.0, 0.3):
        contender.turn(seconds)
    stop.set()
    watcher.join()
    return {"memory_mb": round((highest[0] - before) / 1e6, 1), "imports_mb": round(before / 1e6, 1)}


def held_bytes() -> int:
    """Bytes that this process and its descendants hold; pages that they share count once."""
    process = psutil.Process()
    return sum(own_pages(each.pid) for each in [process, *process.children(recursive=True)])


def own_pages(process: int) -> int:
    """Bytes of a process without pages of files, such as libraries or cached images; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
