"""Compare two runs of a benchmark: ratios with confidence intervals, and the names of the figures that got worse.

    python -m perf.compare OLD.json NEW.json [--threshold 0.05] [--relative] [--json FILE]

Reads reports of perf.profile (perf/report.json), perf.loader, perf.step or perf.sinkhorn. The interval (95 %) of a
figure is a bootstrap of the ratio of medians over the rounds of both runs. A figure has regressed if NEW is worse by
more than the threshold and the whole interval is on the worse side of 1. Figures with fewer than 3 rounds in either run
are shown but not judged. Exit codes: 0, or 1 after a regression, or 2 for a mistake.

    --relative   for runs on different machines: each loader's rate is divided by the rate of bare decoding in the same
                 run. Step times and codes, which have no such reference, are left out; the ratio to the plain PyTorch
                 loop stays
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from common.cli import EXIT_MISTAKE, Parser, print_error

THRESHOLD, LEVEL, RESAMPLES, MIN_ROUNDS = 0.05, 0.95, 4000, 3
NOT_A_REPORT = "not a report of perf.profile, perf.loader, perf.step or perf.sinkhorn"


@dataclass(frozen=True)
class Figure:
    """A figure of one run, with a value for each round. better: "more" or "less"."""

    better: str
    rounds: Sequence[float]


@dataclass(frozen=True)
class Row:
    """NEW / OLD for one figure. low, high: ends of the interval, None for too few rounds. regressed: see the top."""

    name: str
    better: str
    old: float
    new: float
    ratio: float
    low: float | None
    high: float | None
    regressed: bool


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    try:
        if not 0 <= options.threshold < 1:
            raise ValueError(f"--threshold={options.threshold:g}: expected 0 to 1, such as 0.05 for 5 %")
        if options.json and not options.json.absolute().parent.is_dir():
            raise ValueError(f"--json={options.json}: there is no folder {options.json.absolute().parent}")
        old, new = (figures_of(path, options.relative) for path in (options.old, options.new))
        rows = compare(old, new, options.threshold)
        if not rows:
            raise ValueError(f"{options.old} and {options.new} have no figure in common")
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_MISTAKE
    regressions = [row.name for row in rows if row.regressed]
    show(rows, sorted(set(old) ^ set(new)), options.threshold)
    if options.json:
        report = {"threshold": options.threshold, "rows": [asdict(row) for row in rows], "regressions": regressions}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(regressions))


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.compare", __doc__)
    parser.add_argument("old", type=Path, metavar="OLD.json", help="the run to compare with")
    parser.add_argument("new", type=Path, metavar="NEW.json", help="the run to judge")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="accepted loss, a share (default 0.05)")
    parser.add_argument("--relative", action="store_true", help="divide by each run's own decoding rate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here")
    return parser.parse_args(arguments)


# ---------------------------------------------------------------------------------------------- figures of a run
def figures_of(path: Path, relative: bool = False) -> dict[str, Figure]:
    """Figures by name, from a whole report or one part of it. Raises ValueError for any other file."""
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(report, Mapping):
        raise ValueError(f"{path}: {NOT_A_REPORT}")
    parts = report if "loader" in report else {kind_of(report): report}
    if None in parts:
        raise ValueError(f"{path}: {NOT_A_REPORT}")
    figures: dict[str, Figure] = {}
    for name, read_part in (("loader", _loader), ("step", _step), ("sinkhorn", _sinkhorn)):
        if parts.get(name):
            figures |= read_part(parts[name], relative)
    return figures


def kind_of(report: Mapping[str, Any]) -> str | None:
    """The part that a report is: "loader", "step" or "sinkhorn"; None if it is no such part."""
    for name, key in (("loader", "results"), ("step", "phases_ms"), ("sinkhorn", "nodes_at_1_percent")):
        if key in report:
            return name
    return None


def _loader(loader: Mapping[str, Any], relative: bool) -> dict[str, Figure]:
    decode_rate = median(loader["decode_rounds"]) if relative and loader["decode_rounds"] else None
    if relative and decode_rate is None:
        return {}
    scale = decode_rate or 1.0
    over = ", over decoding" if relative else ", images/s"
    rows = {
        f"loader: {row['backend']} {row['mode']}{over}": Figure("more", [rate / scale for rate in row["rounds"]])
        for row in loader["results"]
    }
    if not relative and loader["decode_rounds"]:
        rows["loader: decoding alone, images/s"] = Figure("more", loader["decode_rounds"])
    return rows


def _step(step: Mapping[str, Any], relative: bool) -> dict[str, Figure]:
    rows = {} if relative else {"step: ms": Figure("less", step["rounds_ms"])}
    if step["peer"]:
        rows["step: over plain PyTorch's"] = Figure("less", step["peer"]["rounds"])
    if not relative:
        rows["step: peak memory of a rank, GB"] = Figure("less", [step["peak_gb"]])
    return rows


def _sinkhorn(sinkhorn: Mapping[str, Any], relative: bool) -> dict[str, Figure]:
    if relative:
        return {}
    return {
        f"codes: {row['variant']}, K {row['prototypes']}, batch {row['batch']}, {row['iterations']} it., "
        f"{row['ranks']} ranks, {row['link']}, ms": Figure("less", row.get("rounds_ms") or [row["ms"]])
        for row in sinkhorn["measured"]
        if row["variant"] == "ours"
    }


# ---------------------------------------------------------------------------------------------- comparison
def compare(old: Mapping[str, Figure], new: Mapping[str, Figure], threshold: float = THRESHOLD) -> list[Row]:
    """A row for each figure that both runs have, in the order of `old`."""
    return [row_of(name, figure, new[name], threshold) for name, figure in old.items() if name in new]


def row_of(name: str, old: Figure, new: Figure, threshold: float) -> Row:
    """The comparison of one figure."""
    before, after = median(old.rounds), median(new.rounds)
    ratio = after / before if before else float("nan")
    low, high = interval(old.rounds, new.rounds)
    regressed = False
    if low is not None and high is not None:
        worse = high < 1 if old.better == "more" else low > 1
        loss = 1 - ratio if old.better == "more" else ratio - 1
        regressed = worse and loss > threshold
    return Row(name, old.better, before, after, ratio, low, high, regressed)


def interval(old: Sequence[float], new: Sequence[float]) -> tuple[float | None, float | None]:
    """The middle 95 % of the bootstrapped ratios of medians, as (low, high); (None, None) for too few rounds.

    The bootstrap is seeded: the same files give the same interval.
    """
    if min(len(old), len(new)) < MIN_ROUNDS or min(old) <= 0:
        return None, None
    random = np.random.default_rng(0)
    medians = [
        np.median(random.choice(np.asarray(rounds, float), (RESAMPLES, len(rounds))), axis=1) for rounds in (old, new)
    ]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(medians[1] / medians[0], [tail, 100 - tail])
    return float(low), float(high)


def show(rows: Sequence[Row], alone: Sequence[str], threshold: float) -> None:
    """Print the table and the names of the regressions. alone: figures that only one run has."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(width=None if Console().is_terminal else 130)
    numbers = [Column(name, justify="right") for name in ("old", "new", "new/old", "95 %")]
    table = Table("figure", *numbers, "")
    for row in rows:
        interval_text = "too few rounds" if row.low is None else f"{row.low:.3f} to {row.high:.3f}"
        better = row.ratio > 1 if row.better == "more" else row.ratio < 1
        remark = "regressed" if row.regressed else "better" if better and excludes_one(row) else ""
        table.add_row(row.name, f"{row.old:,.4g}", f"{row.new:,.4g}", f"{row.ratio:.3f}", interval_text, remark)
    console.print(table)
    if alone:
        console.print(f"In only one of the files: {'; '.join(alone)}", markup=False)
    regressions = [row.name for row in rows if row.regressed]
    if regressions:
        console.print(f"Regressed by more than {threshold:.0%}: {'; '.join(regressions)}", markup=False)
    else:
        console.print(f"Nothing has regressed by more than {threshold:.0%}.")


def excludes_one(row: Row) -> bool:
    """Whether the interval lies on one side of 1."""
    return row.low is not None and row.high is not None and not row.low <= 1 <= row.high


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
