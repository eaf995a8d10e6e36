"""Does every ZeRO stage take the same steps as stage 0? On this machine's CPU, with real ranks (gloo).

    python -m perf.zero_check [--json perf/results/zero_check.json] [--quick]        make zero-check

For each number of ranks and parts of a step (accumulation), stage 0 runs in float32 and saves 20 states. From each of
these states every other stage takes one step with the same images, and its result is compared parameter by parameter.
(Whole runs cannot be compared: after a dozen steps rounding alone changes the loss by a percent.)

    update_deviation, momentum_deviation    the largest |stage's - stage 0's| / |stage 0's|; of an update only the part
                                            above the last bit of the float32 parameter to which it is added
    trust_ratio_deviation                   the largest |stage's / stage 0's - 1|
    loss_deviation                          the largest relative difference over the first 6 steps of a run; for half
                                            precision over 50 steps of a tiny network, against float32

Rows in fp64 compare one rank that has the whole batch with several ranks whose batch norm is synchronized over all of
them (in float32 rounding alone, through single ReLUs, changes an update by 2e-3).

The bias in front of the head's batch norm is left out: its gradient is zero except for rounding.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.cli import EXIT_MISTAKE, Parser, print_error
from common.progress import progress_bar
from config.recipe import ROOT
from perf.machine import machine
from perf.ranks import run_ranks
from perf.zero_ranks import FILE, Case, run_rank

STATES, STEPS, HALF_STEPS = 20, 6, 50
LIMITS = {"update_deviation": 1e-6, "trust_ratio_deviation": 1e-6, "momentum_deviation": 1e-6}
LOSS_LIMITS = {"fp32": 1e-5, "fp64": 1e-5, "bf16": 0.02, "fp16": 0.02}


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.zero_check", __doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "perf" / "results" / "zero_check.json", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="only 2 ranks and whole steps")
    options = parser.parse_args(arguments)
    if not options.json.absolute().parent.is_dir():
        print_error(f"--json={options.json}: there is no folder {options.json.absolute().parent}")
        return EXIT_MISTAKE
    rows = check(worlds=(2,) if options.quick else (1, 2, 4), parts=(1,) if options.quick else (1, 2))
    options.json.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")
    show(rows)
    print(f"{options.json}: written")
    return int(any(not row["holds"] for row in rows))


def check(worlds: tuple[int, ...], parts: tuple[int, ...], progress: bool = True) -> list[dict[str, Any]]:
    """A row for each stage, number of ranks, precision and accumulation. worlds: numbers of ranks; parts: of a step."""
    rows = []
    larger_worlds = [ranks for ranks in worlds if ranks > 1]
    cases = len(worlds) * len(parts) * 4 + len(larger_worlds) * 2 + 4 * 2 + 1
    with tempfile.TemporaryDirectory() as scratch, progress_bar(cases, "cases", "case", progress) as bar:
        for ranks in worlds:
            for accumulation in parts:
                reference_folder = Path(scratch) / f"first-{ranks}-{accumulation}"
                reference = run_case(Case(0, ranks, accumulation=accumulation), reference_folder, STATES, STEPS)
                bar.update()
                for stage in (1, 2, 3):
                    case = Case(stage, ranks, accumulation=accumulation)
                    result = run_case(case, Path(scratch) / f"{case}", STATES, STEPS, reference=reference_folder)
                    rows.append(row_of(case, result, reference["losses"]))
                    bar.update()
        for ranks in larger_worlds:
            reference_folder, single = Path(scratch) / f"synchronized-{ranks}", Case(0, 1, "fp64")
            reference = run_case(Case(0, ranks, "fp64", sync=0), reference_folder, STATES, STEPS)
            bar.update()
            result = run_case(single, Path(scratch) / f"one-{ranks}", STATES, STEPS, reference=reference_folder)
            rows.append(row_of(single, result, reference["losses"]) | {"ranks": ranks})
            bar.update()
        full_precision = run_case(Case(0, 2, tiny=True), Path(scratch) / "exact", 0, HALF_STEPS)
        bar.update()
        for precision in ("bf16", "fp16"):
            for stage in range(4):
                case = Case(stage, 2, precision, tiny=True)
                result = run_case(case, Path(scratch) / f"{case}", 0, HALF_STEPS)
                rows.append(row_of(case, result, full_precision["losses"]))
                bar.update()
    return rows


def run_case(
    case: Case, folder: Path, states: int, steps: int, reference: Path | None = None, limit: float | None = None
) -> dict[str, Any]:
    """The result of rank 0 for a case, with a new process for each rank. Raises RuntimeError if one of them fails, or
    if they take longer than `limit` seconds.

    states, steps, reference: as for perf.zero_ranks.run_rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_ranks(run_rank, case.ranks, case, folder, states, steps, reference, on_gpu=case.on_gpu, limit=limit)
    return json.loads((folder / FILE).read_text())


def row_of(case: Case, result: dict[str, Any], losses: list[float]) -> dict[str, Any]:
    """A row of the table: the case, its deviations, and whether they are within the limits.

    result: of `run_case`; losses: of the reference, one for each step.
    """
    deviation = max(abs(a - b) / abs(b) for a, b in zip(result["losses"], losses, strict=True))
    row = {
        "stage": case.stage,
        "ranks": case.ranks,
        "precision": case.precision,
        "accumulation": case.accumulation,
        **{name: result.get(name) for name in LIMITS},
        "loss_deviation": deviation,
        "steps": len(losses),
    }
    within = [row[name] <= limit for name, limit in LIMITS.items() if row[name] is not None]
    return row | {"holds": all(within) and deviation <= LOSS_LIMITS[case.precision]}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*("" if v is None else f"{v:.1e}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
