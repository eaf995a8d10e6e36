"""All checks of swave that need a GPU, in one command: are the results correct, how fast is it, what should be changed?

    python -m perf.gpu_check --explain                          make gpu-check ARGS=--explain        needs no GPU
    python -m perf.gpu_check                                    make gpu-check
    python -m perf.gpu_check --only step loader --minutes 8     make gpu-check ARGS="--only step loader --minutes 8"

It consists of parts of at most 8 minutes, the cheap and telling ones first. It writes perf/results/gpu-DEVICE.json
after each case; the same command continues there, after any end. At the end it prints and writes gpu-DEVICE.md: which
settings to change on this device, and what does not hold.

Exit codes: 0, 1 if a check fails, 2 without a GPU, 75 if cases are left: run it again.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from pathlib import Path
from typing import Any

from common.cli import EXIT_MISTAKE, EXIT_SIGNAL, Parser, at_least, exit_on_mistake, print_error
from common.files import write_atomically
from common.machine import visible_gpus
from config.recipe import ROOT
from perf.gpu_check import record, verdict
from perf.gpu_check.plan import PARTS, explanation
from perf.gpu_check.setup import BATCH, Setup

EXIT_LEFT = 75  # as of a pod that has saved


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.gpu_check", __doc__)
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--explain", action="store_true", help="what each part shows and how long it takes, without a GPU"
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the parts", metavar="PART")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no case that would end later")
    parser.add_argument("--again", action="store_true", help="measure the parts again, also what the record has")
    parser.add_argument("--batch", type=at_least(2), default=BATCH, help=f"images a GPU (default {BATCH})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: perf/results/gpu-DEVICE.json")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes={options.minutes}: expected more than 0")
    if options.explain:
        print(explanation(Setup(max(1, visible_gpus()), options.batch)))
        return 0
    import torch

    if not torch.cuda.is_available():
        print_error("gpu-check needs a GPU, and no GPU is visible; --explain needs none")
        return EXIT_MISTAKE
    from common.versions import versions

    device, setup = torch.cuda.get_device_name(0), Setup(torch.cuda.device_count(), options.batch)
    about = {
        "device": device,
        "gpus": setup.gpus,
        "batch": setup.batch,
        "cuda": torch.version.cuda,
        "versions": versions(),
    }
    path = options.json or ROOT / "perf" / "results" / f"gpu-{re.sub('[^A-Za-z0-9]+', '-', device).strip('-')}.json"
    return check(path, about, setup, options.only, options.again, options.minutes * 60)


def check(path: Path, about: dict[str, Any], setup: Setup, only: list[str], again: bool, seconds: float) -> int:
    """Measure what the record at `path` lacks, write it and its page; returns the exit code."""
    with exit_on_mistake():
        results = record.opened(path, about)
    results.pop("problems", None)  # of the last start
    parts = [part for part in PARTS if part.name in only]
    if again:
        results["parts"] = {name: rows for name, rows in results["parts"].items() if name not in only}
    try:
        left = record.measure(results, parts, setup, lambda: record.write(path, results), seconds)
    except KeyboardInterrupt:
        print_error(f"stopped; {path} has what was measured, the same command continues", below_bar=True)
        return EXIT_SIGNAL + 2
    finally:
        for process in multiprocessing.active_children():
            process.kill()
    results["problems"] = verdict.problems(results)
    record.write(path, results)
    text = verdict.page(results, left)
    write_atomically(path.with_suffix(".md"), text)
    print(f"\n{text}\n{path} and {path.with_suffix('.md').name}: written")
    return 1 if results["problems"] else EXIT_LEFT if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
