"""What bounds training on this machine and these images, on one page: perf/report.html, .md and .json.

    python -m perf.profile [--budget SECONDS] [--data PATH] [--config RECIPE] [key=value ...]      make profile

Runs perf.step, then perf.loader for the step's rate, then perf.sinkhorn for the step's time, each in its share of the
budget. A part that fails says why on the page, the others stand, and the exit code is 1. `python -m perf.compare` holds
two such reports against each other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import ERROR_PREFIX, EXIT_MISTAKE, EXIT_SIGNAL, Parser, print_error
from common.progress import progress_bar
from config.recipe import ROOT, load_config

BUDGET, LEAST = 300.0, 75.0  # seconds
# Of the budget; the rest is for what runs over, and for drawing.
SHARES = {"step": 0.36, "loader": 0.32, "sinkhorn": 0.26}
OUT = ROOT / "perf"


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        check(options)
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_MISTAKE
    try:
        report = run(options)
    except KeyboardInterrupt:
        print_error("stopped; no report is written", below_bar=True)
        return EXIT_SIGNAL + signal.SIGINT
    if report is None:
        return EXIT_MISTAKE  # in the settings or the data: the first part has reported it, there is nothing to draw
    write(report, options.out)
    print(f"\n{report['verdict']}\n{options.out / 'report.html'}: written, and report.md and report.json beside it")
    return int(bool(report["failed"]))


def _stop(number: int, _frame: Any) -> None:
    raise SystemExit(EXIT_SIGNAL + number)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.profile", __doc__)
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for all, about (default {BUDGET:g})")
    parser.add_argument("--data", metavar="PATH", help="your own images: anything that data.path takes")
    parser.add_argument("--config", metavar="RECIPE", help="your own recipe, as for train.py")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="where the report goes (default perf)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, as for train.py")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raises ValueError, one line, for arguments that cannot work. Images and recipe are checked by the parts too."""
    if not LEAST <= options.budget <= 86_400:
        raise ValueError(f"--budget={options.budget:g}: expected {LEAST:g} to 86400 seconds")
    if not options.out.is_dir():
        raise ValueError(f"--out={options.out}: there is no such folder")
    if options.data and not Path(options.data).exists():
        raise ValueError(f"--data={options.data}: no such file or folder")
    for setting in options.settings:
        if "=" not in setting:
            raise ValueError(f"{setting}: expected key=value, or --config={setting} for a recipe")
    if options.config:
        data = [f"data.path={options.data}"] if options.data else []
        load_config([options.config, *options.settings, *data])


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """All parts, one after the other, each a process: its figures, and why it failed if it did; None where the first
    refused its arguments, before any work."""
    begun = time.monotonic()
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="swave-") as folder, progress_bar(3, "profile", "part", True) as bar:
        for name in SHARES:
            path = Path(folder) / f"{name}.json"
            print(f"\n{name}: about {SHARES[name] * options.budget:.0f} seconds", flush=True)
            code, why = part(command(name, path, options, found))
            if code == 2 and not (found or failed):
                return None
            if code:
                failed[name] = why or f"it ended with {code}"
            else:
                found[name] = json.loads(path.read_text())
            bar.update()
    from perf.machine import machine
    from perf.report.verdict import verdict

    report = {"loader": None, "step": None, "sinkhorn": None, **found, "failed": failed, "machine": machine()}
    return report | {"verdict": verdict(report), "seconds": round(time.monotonic() - begun)}


def command(name: str, path: Path, options: argparse.Namespace, found: Mapping[str, Any]) -> list[str]:
    """The command line of a part. found: the parts before it, whose figures it wants."""
    line = [sys.executable, "-m", f"perf.{name}", "--json", str(path), "--budget", f"{SHARES[name] * options.budget:g}"]
    step = found.get("step")
    if name == "sinkhorn":
        return [*line, "--step-ms", f"{step['step_ms']:g}"] if step and on_gpu(step) else line
    line += ["--data", options.data] if options.data else []
    line += ["--config", options.config] if options.config else []
    if name == "step":
        line += ["--peer"]
    elif step and on_gpu(step):
        line += ["--gpu-rate", f"{rate_of(step):g}"]
    return [*line, *options.settings]


def rate_of(step: Mapping[str, Any]) -> float:
    """Images a second that one device takes: the step without its waits for data, over the ranks."""
    computing = step["step_ms"] * (1 - step["shares"]["data_wait"])
    return float(1e3 * step["settings"]["batch"] / computing / step["ranks"])


def on_gpu(step: Mapping[str, Any]) -> bool:
    """Whether the step was a GPU's. A CPU's says nothing of GPUs to feed, and lasts so long that codes would not show
    on any number of nodes: then perf.sinkhorn takes its own, of a ResNet-50 on an H100."""
    return bool(step["device"] != "cpu")


def part(line: Sequence[str]) -> tuple[int, str]:
    """Run it, its words passed through; its exit code, and its last line on stderr."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    last = ""
    assert process.stderr
    try:
        for told in process.stderr:
            sys.stderr.write(told)
            last = told.rsplit("\r", 1)[-1].strip() or last
        return process.wait(), last.removeprefix(ERROR_PREFIX)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def write(report: Mapping[str, Any], folder: Path) -> None:
    """report.json, report.md and report.html, each complete or as it was."""
    from common.files import write_atomically
    from perf.report.markdown import markdown
    from perf.report.page import page

    for name, text in (
        ("report.json", json.dumps(report, indent=1) + "\n"),
        ("report.md", markdown(report)),
        ("report.html", page(report)),
    ):
        write_atomically(folder / name, text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
