"""Break the real programs on purpose, a fault a row: what does a user see, what is lost, and what comes after it?

    python -m perf.faults [--minutes 30] [--only REGEX] [--again]        make faults MINUTES=30

A tiny network trains on 72 images, on one to three processes; conversions, evaluations and exports are as small. Every
fault begins with the same files. The table (docs/faults.md, perf/results/faults.json) is written after each row; the
same command goes on with the rows that are missing or did not hold. A row holds if the exit code and the line that a
user sees are as expected, there is no stack trace, nothing that was saved is lost, and the program, or after it the
same command, gives the losses, files or figures of an undisturbed one, bit for bit.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common.cli import EXIT_FAILED, EXIT_MISTAKE, Parser, print_error
from common.progress import progress_bar
from config.recipe import ROOT
from perf.faults import damage, disks, kills, machine, network, remote, values
from perf.faults.fault import Fault, carry_out
from perf.faults.needs import lacking
from perf.faults.output import Report, read, show, write
from perf.faults.snapshots import Snapshots

IN_NAMESPACE = "SWAVE_FAULTS"  # set where the mounts of the campaign are its own


def all_faults() -> list[Fault]:
    """Every row, in the order of the table."""
    return [fault for part in (kills, disks, damage, values, remote, machine, network) for fault in part.faults()]


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.faults", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no row after that time (default 60)")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose `kind: fault` matches")
    parser.add_argument("--short", action="store_true", help="a row of each kind, as the tests do")
    parser.add_argument("--again", action="store_true", help="also rows that hold already")
    parser.add_argument("--json", type=Path, default=ROOT / "perf" / "results" / "faults.json", metavar="FILE")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "faults.md", metavar="FILE")
    options = parser.parse_args(arguments)
    for name in ("json", "page"):
        if not getattr(options, name).absolute().parent.is_dir():
            print_error(f"--{name}={getattr(options, name)}: there is no such folder")
            return EXIT_MISTAKE
    try:
        wanted = re.compile(options.only)
    except re.error as error:
        print_error(f"--only={options.only}: not a regular expression ({error})")
        return EXIT_MISTAKE
    enter_namespace(arguments)

    faults = [fault for fault in all_faults() if fault.short or not options.short]
    report = read(options.json)
    left = [
        fault for fault in faults
        if wanted.search(fault.name) and (options.again or not report.get(fault.name, {}).get("holds"))
    ]  # fmt: skip
    carry_out_all(left, report, options.minutes, lambda: write(report, faults, options.json, options.page))
    show(report, left)
    return EXIT_FAILED if any(report.get(fault.name, {}).get("wrong") for fault in left) else 0


def carry_out_all(faults: list[Fault], report: Report, minutes: float, written: Callable[[], None]) -> None:
    """Add a row to the report for each fault, until the time is over. written: called after each row."""
    end = time.monotonic() + 60 * minutes
    scratch = tempfile.TemporaryDirectory(prefix="swave-faults-", ignore_cleanup_errors=True)
    with scratch, progress_bar(len(faults), "faults", "fault") as bar:
        snapshots = Snapshots(Path(scratch.name))
        for fault in faults:
            if time.monotonic() > end:
                break
            missing = lacking(fault.needs)
            row = {"skipped": missing, "holds": False, "wrong": []} if missing else carry_out(fault, snapshots)
            report[fault.name] = row
            written()
            bar.update()


def enter_namespace(arguments: list[str]) -> None:
    """As root, start again in a mount namespace of its own: no mount is left if the campaign is killed."""
    if os.geteuid() == 0 and IN_NAMESPACE not in os.environ and shutil.which("unshare"):
        words = ["unshare", "--mount", sys.executable, "-m", "perf.faults", *arguments]
        os.execvpe("unshare", words, os.environ | {IN_NAMESPACE: "1"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
