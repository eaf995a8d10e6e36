"""Cases that compare results. Heavy imports are inside the functions: `--explain` works without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.recipe import ROOT
from perf.gpu_check.setup import Setup

BATCH_NORM_DEVIATION = 1e-4  # of the loss, at most


def half_rows(
    setup: Setup, precision: str, stages: Sequence[int], steps: int | None = None, limit: float | None = None
) -> list[dict[str, Any]]:
    """Losses of `steps` steps in half precision at each stage, against float32."""
    from perf.zero_check import HALF_STEPS, row_of, run_case
    from perf.zero_ranks import Case

    count = steps or min(HALF_STEPS, setup.steps)

    def losses(stage: int, of: str, folder: Path) -> tuple[Case, dict[str, Any]]:
        case = Case(stage, setup.gpus, of, on_gpu=setup.on_gpu, tiny=True)
        return case, run_case(case, folder, 0, count, limit=limit)

    with tempfile.TemporaryDirectory() as scratch:
        _, exact = losses(0, "fp32", Path(scratch) / "exact")
        halves = [losses(stage, precision, Path(scratch) / f"stage{stage}") for stage in stages]
    return [row_of(case, result, exact["losses"]) for case, result in halves]


def stage_rows(setup: Setup, limit: float) -> list[dict[str, Any]]:
    """Every ZeRO stage against stage 0 in float32, from the same states and over the first steps of a run."""
    return _against_stage_0(setup, limit, [{"stage": 1}, {"stage": 2}, {"stage": 3}])


def overlap_rows(setup: Setup, limit: float) -> list[dict[str, Any]]:
    """Stage 1 without and with overlap_comm against stage 0: a race would show in the losses."""
    return _against_stage_0(setup, limit, [{"stage": 1, "overlap": overlap} for overlap in (False, True)])


def _against_stage_0(setup: Setup, limit: float, changes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    from perf.zero_check import STEPS, row_of, run_case
    from perf.zero_ranks import Case

    rows, count = [], min(STEPS, setup.steps)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        reference = run_case(Case(0, setup.gpus, on_gpu=setup.on_gpu), base, setup.states, count, limit=limit)
        for number, change in enumerate(changes):
            case = Case(ranks=setup.gpus, on_gpu=setup.on_gpu, **change)
            folder = Path(scratch) / str(number)
            result = run_case(case, folder, setup.states, count, reference=base, limit=limit)
            rows.append(row_of(case, result, reference["losses"]) | {"overlap_comm": change.get("overlap")})
    return rows


def batch_norm_rows(setup: Setup, limit: float) -> list[dict[str, Any]]:
    """Batch norm synchronized over all GPUs, against one GPU with the whole batch."""
    from perf.zero_check import STEPS, run_case
    from perf.zero_ranks import Case

    states, steps = min(5, setup.states), min(STEPS, setup.steps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "all"
        several = run_case(Case(0, setup.gpus, on_gpu=setup.on_gpu, sync=0), folder, states, steps, limit=limit)
        single = Case(0, 1, on_gpu=setup.on_gpu)
        one = run_case(single, Path(scratch) / "one", states, steps, reference=folder, limit=limit)
    deviation = max(abs(a - b) / abs(b) for a, b in zip(one["losses"], several["losses"], strict=True))
    holds = deviation <= BATCH_NORM_DEVIATION
    return [{"batch_norm_over": setup.gpus, "loss_deviation": deviation, "holds": holds}]


def codes_rows(setup: Setup, limit: float) -> list[dict[str, Any]]:
    """The codes in several implementations on one GPU, without communication."""
    from perf.ranks import run_ranks

    with tempfile.TemporaryDirectory() as scratch:
        run_ranks(run_codes, 1, setup.batch, Path(scratch), on_gpu=setup.on_gpu, limit=limit)
        return json.loads((Path(scratch) / "codes.json").read_text())


def run_codes(_rank: int, batch: int, folder: Path) -> None:
    """In its own process: compares the implementations; writes `folder`/codes.json."""
    from perf.sinkhorn.device import compare
    from training.distributed import Cluster

    (folder / "codes.json").write_text(json.dumps(compare(batch, Cluster().take_device())))


def test_rows(setup: Setup, limit: float, tests: str = "tests") -> list[dict[str, Any]]:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", *(["-m", "gpu"] if setup.on_gpu else []), tests]
    try:
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {limit:.0f} seconds") from None
    return [{"pytest": (process.stdout.strip().splitlines() or [""])[-1], "holds": process.returncode == 0}]
