"""How many images a second each loader gives on this machine: SwAV's eight crops from JPEG files, on the CPU.

    python -m perf.loader [--json FILE] [--data PATH] [--backends ffcv,dali,torchvision] ...

Contenders take turns of a second or two, round after round, all on the same cores, and never at the same time.

    full     files -> 2 x 224 and 6 x 96 pixel crops with all of SwAV's augmentation, normalised float32 in batches
             ffcv, dali          our loader with these backends: order, reading, draw, backend, hand-over
             ffcv-affine         ffcv with crops.jitter.exact=false: one affine map in place of the colour steps
             ffcv-kernel         of ffcv the kernel alone, on bytes in memory
             dali-random         DALI with its own reader and random operators, one decode an image
             torchvision         the published recipe: DataLoader, PIL, torchvision's transforms
    crops    JPEG bytes in memory -> the same crops as uint8, without colour and blur: what a GPU leaves to the CPU
             ffcv                our kernel
             ffcv-stock-one-view FFCV's own loader on a .beton, and one crop instead of eight
    decode   JPEG bytes in memory -> pixels: libjpeg-turbo alone, the yardstick

Images: 1,200 JPEGs of about 500 x 375 pixels and 76 kB made from photographs that ship with scikit-image and -learn,
kept in data/bench, or those of --data. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from config.recipe import DEFAULTS, ROOT
from pipeline.crops import Crops, crops_from_config
from pipeline.dataset import find_split, open_dataset
from pipeline.folder import progress_bar

if TYPE_CHECKING:  # heavy ones are imported once the arguments are known to be good
    from perf.images import Jpegs
    from perf.turns import Contender, Turn
    from pipeline.table import SampleTable

BACKENDS = ("ffcv", "ffcv-affine", "dali", "dali-random", "torchvision", "ffcv-stock-one-view")
FOLDER = Path("data/bench")  # made images, tables, and what is written for a run and goes with it
MEMORY_BATCH, MEMORY_EPOCHS = 256, 10


class Interrupted(KeyboardInterrupt):
    """SIGINT. Not KeyboardInterrupt itself: where that passes through exec() of a text, as in an import of numba,
    Python ends by the signal and not with our exit code, although we catch it."""


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    stopped: list[BaseException] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(Interrupted() if number == signal.SIGINT else SystemExit(128 + number))
        raise stopped[0]

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        report = run(options, stopped)
    except (ValueError, OSError, ImportError) as error:
        print(f"swave: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nswave: stopped; nothing is written", file=sys.stderr)
        return 128 + signal.SIGINT
    from perf.report import show

    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{options.json}: written")
    return 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m perf.loader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--data", metavar="PATH", help="your own images: anything that data.path takes")
    parser.add_argument("--images", type=int, default=1200, help="how many of them, evenly spread (default 1200)")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="default: all, " + ",".join(BACKENDS))
    parser.add_argument("--batch", type=int, default=64, help="images a batch (default 64)")
    parser.add_argument("--threads", type=int, default=0, help="cores, and threads or workers on them (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a turn, at least (default 1.5)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the measuring of memory out")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, stopped: Sequence[BaseException] = ()) -> dict[str, Any]:
    """The whole benchmark: check, get the images, play, put the report together. Raises ValueError for a mistake, and
    after a turn the first of `stopped`: what a signal raises is lost if it falls into a library's callback."""
    # ------------------------------------------------------------------ mistakes first
    backends = options.backends.split(",")
    cores = sorted(os.sched_getaffinity(0))
    check(options, backends, len(cores))
    threads = options.threads or len(cores)

    # ------------------------------------------------------------------ images
    from omegaconf import OmegaConf

    from perf.images import choose, jpegs_in_memory, make_jpegs
    from perf.machine import machine
    from perf.report import figures

    where = machine(cores)
    source = options.data or make_jpegs(FOLDER / "photographs", options.images, threads)
    table = open_dataset(find_split(source)[0], FOLDER / "tables", setting="--data")
    table = choose(table, options.images)
    if len(table) < options.batch:
        told = f"--batch={options.batch}: there are only {len(table)} images in {source} that every decoder reads"
        raise ValueError(f"{told}; give more images or a smaller --batch")
    crops = crops_from_config(OmegaConf.load(DEFAULTS).crops)

    # ------------------------------------------------------------------ contenders and their turns
    from perf import ours
    from perf.turns import cpu_seconds, play, use_cores

    used = cores[:threads]
    use_cores(used)
    with tempfile.TemporaryDirectory(dir=_made(FOLDER)) as scratch:
        jpegs = jpegs_in_memory(table, lambda found: ours.accepted(found, crops, threads))
        contenders = line_up(backends, table, jpegs, crops, options.batch, threads, Path(scratch))
        with progress_bar(len(contenders) * (options.rounds + 1), "turns", "turn", True) as bar:
            before, start = cpu_seconds(), perf_counter()

            def done() -> None:
                bar.update()
                if stopped:
                    raise stopped[0]

            turns = play(contenders, options.rounds, options.seconds, used, done)
            (busy, own), taken = np.subtract(cpu_seconds(), before), perf_counter() - start
        where["taken_by_others"] = round(max(0.0, busy - own) / (taken * (os.cpu_count() or 1)), 3)
        stages = stage_figures(contenders, turns, jpegs, crops, threads)
        wanted = options.memory and "ffcv" in backends and len(jpegs) >= options.batch
        memory = memory_figures(table, threads, Path(scratch)) if wanted else {}

    return {
        **figures(contenders, turns, threads),
        "stages_ms": stages,
        "memory": memory,
        "machine": where,
        "images": {
            "count": len(table),
            "jpegs_in_memory": len(jpegs),
            "mean_bytes": round(float(table.length.mean())),
            "mean_width": round(float(table.width.mean())),
            "mean_height": round(float(table.height.mean())),
            "source": "photographs of scikit-image and scikit-learn" if options.data is None else options.data,
        },
        "settings": {
            "backends": backends,
            "batch": options.batch,
            "threads": threads,
            "rounds": options.rounds,
            "seconds": options.seconds,
        },
    }


def check(options: argparse.Namespace, backends: Sequence[str], cores: int) -> None:
    """Raises ValueError, one line, for arguments that cannot work."""
    for name in backends:
        if name not in BACKENDS:
            raise ValueError(
                f"--backends={options.backends}: unknown backend {name!r}; take some of {','.join(BACKENDS)}"
            )
    if len(set(backends)) < len(backends):
        raise ValueError(f"--backends={options.backends}: name each backend once")
    for name in ("images", "batch", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}={getattr(options, name)}: expected at least 1")
    if not 0 < options.seconds <= 600:
        raise ValueError(f"--seconds={options.seconds}: expected more than 0, at most 600")
    if not 0 <= options.threads <= cores:
        raise ValueError(f"--threads={options.threads}: expected 1 to {cores}, the cores that this process may use")
    if options.images < options.batch:
        raise ValueError(f"--images={options.images} is less than --batch={options.batch}; raise it or lower --batch")
    if options.json and not options.json.absolute().parent.is_dir():
        raise ValueError(f"--json={options.json}: there is no folder {options.json.absolute().parent}")


def line_up(
    backends: Sequence[str], table: SampleTable, jpegs: Jpegs, crops: Crops, batch: int, threads: int, scratch: Path
) -> list[Contender]:
    """All contenders, ready; those on JPEGs in memory only where there is a batch of them."""
    from perf import ours, peers
    from perf.images import files_of

    enough = len(jpegs) >= batch
    found = []
    if "ffcv-stock-one-view" in backends and enough:  # first: FFCV's writer forks
        found.append(peers.ffcv_stock(jpegs, crops, batch, threads, scratch))
    files = files_of(table, scratch) if {"torchvision", "dali-random"} & set(backends) else []
    if "torchvision" in backends:
        found.append(peers.torchvision(files, crops, batch, threads))
    if "dali-random" in backends:
        found.append(peers.dali_random(files, crops, batch, threads))
    found += [ours.loader(name, table, crops, batch, threads) for name in ("dali", "ffcv-affine") if name in backends]
    one_core = [1] if threads > 1 and "ffcv" in backends else []
    for cores in (threads, *one_core):
        if "ffcv" in backends:
            found.append(ours.loader("ffcv", table, crops, batch, cores))
        if "ffcv" in backends and enough:
            found.append(ours.kernel("crops", jpegs, crops, batch, cores))
        if enough:
            found.append(ours.kernel("decode", jpegs, crops, batch, cores))
    if "ffcv" in backends and enough:
        found.append(ours.kernel("full", jpegs, crops, batch, threads))
    return found


def stage_figures(
    contenders: Sequence[Contender], turns: Sequence[Sequence[Turn]], jpegs: Jpegs, crops: Crops, threads: int
) -> dict[str, float]:
    """CPU milliseconds an image: the kernel's stages and their sum, what the loader takes beside the kernel (reading,
    drawing, passing on; within rounds), and both together; {} without the ffcv backend or JPEGs."""
    from perf import ours

    each = {
        (contender.backend, contender.mode, contender.cores): [1000 * turn.cpu_seconds / turn.images for turn in done]
        for contender, done in zip(contenders, turns, strict=True)
    }
    alone = each.get(("ffcv-kernel", "full", threads))
    if alone is None:
        return {}
    found = ours.stages(jpegs, crops, threads)
    kernel = found.pop("total")
    whole = each[("ffcv", "full", threads)]
    hand_over = median(both - inner for both, inner in zip(whole, alone, strict=True))
    found |= {"kernel": kernel, "hand_over": hand_over, "loader": kernel + hand_over}
    return {name: round(value, 4) for name, value in found.items()}


def memory_figures(table: SampleTable, threads: int, scratch: Path) -> dict[str, Any]:
    """What perf/memory_use.py tells of a fresh process on the same images."""
    table.save(scratch / "table.npz", digests={name: "" for name in table.containers})
    settings = {"batch": min(MEMORY_BATCH, len(table)), "threads": threads, "epochs": MEMORY_EPOCHS}
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "perf.memory_use", str((scratch / "table.npz").absolute()), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"measuring the memory failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
