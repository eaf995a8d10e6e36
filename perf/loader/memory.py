"""What memory each contender of the loader's benchmark takes, each measured in a process of its own.

    python -m perf.loader.memory TABLE.npz --backend ffcv --mode full --batch 64 --threads 2 [--config RECIPE]

Prints one line of JSON: `memory_mb`, the most memory (1e6 bytes) that the process and its workers held while they made
batches, above what this process held once its libraries were imported, and `imports_mb`, the latter. Pages of files,
which the kernel can drop, do not count; memory that processes share counts once. JPEGs that a contender takes from
memory do not count either; what worker processes import does.
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

from common.cli import Parser
from config.recipe import ROOT
from perf.loader.contenders import Key, Material, crops_of, in_memory, make
from pipeline.crops import Crops

GPU_BATCH, GPU_EPOCHS = 256, 10
EVERY = 0.02  # seconds between looks at the memory
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
    """MB of each contender, `at_once` of them measured at a time; None for those not begun at `until` (perf_counter).

    recipe: --config and settings. Raises OSError.
    """

    def measured(key: Key) -> float | None:
        if perf_counter() > until:
            return None
        flags = ["--backend", key[0], "--mode", key[1], "--threads", str(key[2]), "--batch", str(batch), *recipe]
        command = [sys.executable, "-m", "perf.loader.memory", str(table.absolute()), *flags]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if found.returncode:
            raise OSError(f"measuring the memory of {key[0]} failed: {found.stderr.strip().splitlines()[-1:]}")
        done()
        return float(json.loads(found.stdout.splitlines()[-1])["memory_mb"])

    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(keys, pool.map(measured, keys), strict=True))


def gpu_half(table: Path, images: int, threads: int, recipe: Sequence[str]) -> dict[str, Any]:
    """What perf/loader/gpu_feed_memory.py tells of the ffcv backend on a GPU's host. Raises OSError."""
    settings = {"batch": min(GPU_BATCH, images), "threads": threads, "epochs": GPU_EPOCHS}
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "perf.loader.gpu_feed_memory", str(table.absolute()), *flags, *recipe]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise OSError(f"measuring the memory failed: {found.stderr.strip().splitlines()[-1:]}")
    return json.loads(found.stdout)


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.loader.memory", (__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="a sample table (.npz) of JPEGs")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--mode", default="full")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args(arguments)
    crops = crops_of(options.config, options.settings)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure((options.backend, options.mode, options.threads), options, crops, Path(scratch))))
    return 0


def measure(key: Key, options: argparse.Namespace, crops: Crops, scratch: Path) -> dict[str, float]:
    """See the head of this file."""
    import importlib

    from perf.images import Jpegs, jpegs_in_memory
    from perf.loader import ours  # with torch and numba, which every loader's user has imported
    from pipeline.dataset.table import SampleTable

    if key[0] in LIBRARIES:
        importlib.import_module(LIBRARIES[key[0]])
    table = SampleTable.load(options.table)
    jpegs = Jpegs([], table.height[:0], table.width[:0])
    if in_memory(key):
        jpegs = jpegs_in_memory(table, lambda found: ours.accepted(found, crops, options.threads))
    before = held()
    highest, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(EVERY):
            highest[0] = max(highest[0], held())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    contender = make(key, Material(table, jpegs, crops, options.batch, scratch))
    for seconds in (0.0, 0.3):
        contender.turn(seconds)
    stop.set()
    watcher.join()
    return {"memory_mb": round((highest[0] - before) / 1e6, 1), "imports_mb": round(before / 1e6, 1)}


def held() -> int:
    """Bytes of this process and all below it: their own pages, and those they share among each other in proportion."""
    process = psutil.Process()
    return sum(own_pages(each.pid) for each in [process, *process.children(recursive=True)])


def own_pages(process: int) -> int:
    """Bytes of a process that are no file's (of libraries, or of images in the page cache); 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
