"""What bounds training on this machine and these images, on one page: perf/report.html, .md and .json.

    python -m perf.profile [--budget SECONDS] [--data PATH] [--config RECIPE] [key=value ...]      make profile

Runs perf.step, then perf.loader with the rate of that step, then perf.sinkhorn with its time, each in its share of the
budget. If a part fails, the page gives the reason and still shows the other parts; the exit code is 1.
`python -m perf.compare` compares two such reports.
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

BUDGET, MIN_BUDGET = 300.0, 75.0  # seconds
# Of the budget; the rest is a reserve for parts that take longer, and for drawing.
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
        return EXIT_MISTAKE  # the first part has printed the mistake
    write(report, options.out)
    print(f"\n{report['verdict']}\n{options.out / 'report.html'}: written, with report.md and report.json")
    return int(bool(report["failed"]))


def _stop(number: int, _frame: Any) -> None:
    raise SystemExit(EXIT_SIGNAL + number)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.profile", __doc__)
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help=f"seconds for the whole report, about (default {BUDGET:g})"
    )
    parser.add_argument("--data", metavar="PATH", help="your own images: anything that data.path takes")
    parser.add_argument("--config", metavar="RECIPE", help="your own recipe, as for train.py")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="where the report goes (default perf)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, as for train.py")
    return parser.parse_intermixed_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raises ValueError, one line, for arguments that cannot work. The parts check images and recipe again."""
    if not MIN_BUDGET <= options.budget <= 86_400:
        raise ValueError(f"--budget={options.budget:g}: expected {MIN_BUDGET:g} to 86400 seconds")
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
    """Run all parts one after the other, each in its own process, and return the report: the figures of each part, and
    why a part failed. None if the first part ends with a mistake in its arguments."""
    begun = time.monotonic()
    parts: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="swave-") as folder, progress_bar(3, "profile", "part", True) as bar:
        for name in SHARES:
            path = Path(folder) / f"{name}.json"
            print(f"\n{name}: about {SHARES[name] * options.budget:.0f} seconds", flush=True)
            code, message = part(command(name, path, options, parts))
            if code == 2 and not (parts or failed):
                return None
            if code:
                failed[name] = message or f"it ended with {code}"
            else:
                parts[name] = json.loads(path.read_text())
            bar.update()
    from perf.machine import machine
    from perf.report.verdict import verdict

    report = {"loader": None, "step": None, "sinkhorn": None, **parts, "failed": failed, "machine": machine()}
    return report | {"verdict": verdict(report), "seconds": round(time.monotonic() - begun)}


def command(name: str, path: Path, options: argparse.Namespace, parts: Mapping[str, Any]) -> list[str]:
    """The command line of a part. parts: reports of the earlier parts; loader and codes use figures of the step."""
    line = [sys.executable, "-m", f"perf.{name}", "--json", str(path), "--budget", f"{SHARES[name] * options.budget:g}"]
    step = parts.get("step")
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
    """Images a second that one device trains on, from the time of a step without its waits for data."""
    computing = step["step_ms"] * (1 - step["shares"]["data_wait"])
    return float(1e3 * step["settings"]["batch"] / computing / step["ranks"])


def on_gpu(step: Mapping[str, Any]) -> bool:
    """Whether the step ran on GPUs. The time of a step on CPUs is no guide to GPUs: it is so long that codes would not
    matter on any number of nodes. perf.sinkhorn then uses its default, a ResNet-50 step on an H100."""
    return bool(step["device"] != "cpu")


def part(line: Sequence[str]) -> tuple[int, str]:
    """Run a command and pass its output through; returns its exit code and the last line of its stderr."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    last = ""
    assert process.stderr
    try:
        for text in process.stderr:
            sys.stderr.write(text)
            last = text.rsplit("\r", 1)[-1].strip() or last
        return process.wait(), last.removeprefix(ERROR_PREFIX)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write report.json, report.md and report.html, each atomically."""
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
