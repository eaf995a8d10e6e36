"""Two runs of a benchmark against each other: ratios with confidence intervals, and regressions by name.

    python -m perf.compare OLD.json NEW.json [--threshold 0.05] [--relative] [--json FILE]

Takes reports of perf.profile (perf/report.json), perf.loader, perf.step or perf.sinkhorn. A figure's interval (95 %) is
a bootstrap of the ratio of medians over the rounds of both runs. A figure has regressed where NEW is worse by more than
the threshold and the whole interval is on the worse side of 1. Figures with fewer than 3 rounds in either run are
shown, but judge nothing. Exit codes: 0, 1 with a regression, 2 for a mistake.

    --relative   each run's loaders over its own bare decoding, for runs on different machines; what has no yardstick of
                 its own (step times, codes) is left out, the ratio to the plain loop stays
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

THRESHOLD, LEVEL, RESAMPLED, FEWEST = 0.05, 0.95, 4000, 3


@dataclass(frozen=True)
class Figure:
    """What rounds of a run gave. better: "more" or "less"."""

    better: str
    rounds: Sequence[float]


@dataclass(frozen=True)
class Row:
    """NEW over OLD of a figure, with its interval (None: too few rounds). regressed: worse past the threshold."""

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
        found = {"threshold": options.threshold, "rows": [asdict(row) for row in rows], "regressions": regressions}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(regressions))


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.compare", __doc__)
    parser.add_argument("old", type=Path, metavar="OLD.json", help="the run to compare with")
    parser.add_argument("new", type=Path, metavar="NEW.json", help="the run in question")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="share that may be lost (default 0.05)")
    parser.add_argument("--relative", action="store_true", help="over each run's own yardsticks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here")
    return parser.parse_args(arguments)


# ---------------------------------------------------------------------------------------------- figures of a run
def figures_of(path: Path, relative: bool = False) -> dict[str, Figure]:
    """Name -> rounds, of a report or a part of one. Raises ValueError for another file."""
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(report, Mapping):
        raise ValueError(f"{path}: not a report of perf.profile, perf.loader, perf.step or perf.sinkhorn")
    parts = report if "loader" in report else {kind_of(report): report}
    if None in parts:
        raise ValueError(f"{path}: not a report of perf.profile, perf.loader, perf.step or perf.sinkhorn")
    found: dict[str, Figure] = {}
    for name, figures in (("loader", _loader), ("step", _step), ("sinkhorn", _sinkhorn)):
        if parts.get(name):
            found |= figures(parts[name], relative)
    return found


def kind_of(report: Mapping[str, Any]) -> str | None:
    """Which program wrote it."""
    for name, key in (("loader", "results"), ("step", "phases_ms"), ("sinkhorn", "nodes_at_1_percent")):
        if key in report:
            return name
    return None


def _loader(found: Mapping[str, Any], relative: bool) -> dict[str, Figure]:
    yardstick = median(found["decode_rounds"]) if relative and found["decode_rounds"] else None
    if relative and yardstick is None:
        return {}
    scale = yardstick or 1.0
    over = ", over decoding" if relative else ", images/s"
    rows = {
        f"loader: {row['backend']} {row['mode']}{over}": Figure("more", [rate / scale for rate in row["rounds"]])
        for row in found["results"]
    }
    if not relative and found["decode_rounds"]:
        rows["loader: decoding alone, images/s"] = Figure("more", found["decode_rounds"])
    return rows


def _step(found: Mapping[str, Any], relative: bool) -> dict[str, Figure]:
    rows = {} if relative else {"step: ms": Figure("less", found["rounds_ms"])}
    if found["peer"]:
        rows["step: over plain PyTorch's"] = Figure("less", found["peer"]["rounds"])
    if not relative:
        rows["step: peak memory of a rank, GB"] = Figure("less", [found["peak_gb"]])
    return rows


def _sinkhorn(found: Mapping[str, Any], relative: bool) -> dict[str, Figure]:
    if relative:
        return {}
    return {
        f"codes: {row['variant']}, K {row['prototypes']}, batch {row['batch']}, {row['iterations']} it., "
        f"{row['ranks']} ranks, {row['link']}, ms": Figure("less", row.get("rounds_ms") or [row["ms"]])
        for row in found["measured"]
        if row["variant"] == "ours"
    }


# ---------------------------------------------------------------------------------------------- one against the other
def compare(old: Mapping[str, Figure], new: Mapping[str, Figure], threshold: float = THRESHOLD) -> list[Row]:
    """Rows of what both have, in OLD's order."""
    return [row_of(name, figure, new[name], threshold) for name, figure in old.items() if name in new]


def row_of(name: str, old: Figure, new: Figure, threshold: float) -> Row:
    """A figure's ratio, interval, and whether it has regressed."""
    before, after = median(old.rounds), median(new.rounds)
    ratio = after / before if before else float("nan")
    low, high = interval(old.rounds, new.rounds)
    regressed = False
    if low is not None and high is not None:
        worse = high < 1 if old.better == "more" else low > 1
        lost = 1 - ratio if old.better == "more" else ratio - 1
        regressed = worse and lost > threshold
    return Row(name, old.better, before, after, ratio, low, high, regressed)


def interval(old: Sequence[float], new: Sequence[float]) -> tuple[float | None, float | None]:
    """The middle 95 % of the ratio of medians, rounds of both drawn anew with replacement; None for too few rounds.

    The draw is seeded: the same files give the same interval.
    """
    if min(len(old), len(new)) < FEWEST or min(old) <= 0:
        return None, None
    random = np.random.default_rng(0)
    medians = [
        np.median(random.choice(np.asarray(rounds, float), (RESAMPLED, len(rounds))), axis=1) for rounds in (old, new)
    ]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(medians[1] / medians[0], [tail, 100 - tail])
    return float(low), float(high)


def show(rows: Sequence[Row], alone: Sequence[str], threshold: float) -> None:
    """Print the table, and the regressions by name."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(width=None if Console().is_terminal else 130)
    numbers = [Column(name, justify="right") for name in ("old", "new", "new/old", "95 %")]
    table = Table("figure", *numbers, "")
    for row in rows:
        sure = "too few rounds" if row.low is None else f"{row.low:.3f} to {row.high:.3f}"
        better = row.ratio > 1 if row.better == "more" else row.ratio < 1
        word = "regressed" if row.regressed else "better" if better and excludes_one(row) else ""
        table.add_row(row.name, f"{row.old:,.4g}", f"{row.new:,.4g}", f"{row.ratio:.3f}", sure, word)
    console.print(table)
    if alone:
        console.print(f"In one of the files only: {'; '.join(alone)}", markup=False)
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
