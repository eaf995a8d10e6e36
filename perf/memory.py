"""Memory of a network's training state on each rank, at every ZeRO stage: computed, and measured on CPU ranks.

    python -m perf.memory [--ranks 1 8 64] [--precision fp32]        computed
    python -m perf.memory --measure [--only resnet50] [--json F]     computed and measured: resident memory of 1, 2 and
                                                                     4 processes of this machine, if they fit

This counts parameters, gradients, float32 masters, the optimizer's state, and the buffers with which DeepSpeed 0.19.8
communicates them, at the peak within a step. Activations come on top. In bytes, for P parameters on N ranks, b bytes a
parameter (4; 2 in fp16), s bytes of optimizer state a parameter (4 for LARS, 8 for AdamW), and a bucket of P/8
elements:

    stage 0     parameters bP + gradients bP + state sP + the largest of
                  all-reduce: a flat copy of the gradients bP (in fp32 on several ranks no copy worth a term:
                  training/gradient_averaging.py reduces the gradients in place)
                  step: AdamW 4P; in fp16 masters 4P, and float32 gradients 4P
    stages 1,2  parameters bP + masters and state (4+s)P/N + the largest of
                  backward: this rank's gradients bP/N (stage 1: all, bP) + a bucket
                  step: this rank's gradients bP/N, a flat float32 copy of them 4P/N + two buckets; AdamW: + 4P/N
                  publishing: two buckets; with gloo also a second copy of the gathered parameters, bP
    stage 3     parameters, masters, gradients and state (2b+4+s)P/N + the larger of
                  forward, backward: the small parameters, which every rank keeps whole, and (6 + 5/N) buckets for
                  gathering and reducing
                  step: (4 + 5/N) buckets; AdamW: + 4P/N         (these numbers of buckets are measured, not derived)

bf16 takes as much as fp32: backward frees the bfloat16 copies of the weights, 2P, while it makes gradients. Stage 3
takes P more.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.cli import Parser, at_least
from common.processes import environment
from common.progress import progress_bar
from perf.memory_ranks import Case, run_rank
from perf.ranks import run_ranks
from training.deepspeed_engine import PERSISTENT

HEAD = {"embedding_dim": 128, "prototypes": 3000}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "resnet50": ({"backbone": "resnet50", "options": {}, "hidden_dim": 2048, **HEAD}, "lars"),
    "resnet50w4": ({"backbone": "resnet50w4", "options": {}, "hidden_dim": 8192, **HEAD}, "lars"),
    "vit_large_patch16_224": (
        {"backbone": "vit_large_patch16_224", "options": {}, "hidden_dim": 2048, **HEAD},
        "adamw",
    ),
}
STATE_BYTES = {"lars": 4, "adamw": 8}
WORK_BYTES = {"lars": 0, "adamw": 4}  # for each parameter, during the optimizer's step
GB = 1e9
FITS = 20 * GB  # memory of this machine that all ranks together may take


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.memory", __doc__)
    parser.add_argument("--ranks", type=at_least(1), nargs="+", default=[1, 2, 4, 8, 64], metavar="N")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--only", choices=tuple(MODELS), help="one network")
    parser.add_argument("--measure", action="store_true", help="measure 1, 2 and 4 CPU processes, if they fit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    options = parser.parse_args(arguments)
    models = [options.only] if options.only else list(MODELS)
    rows = table(models, options.ranks, options.precision)
    if options.measure:
        rows = measured(models, options.precision)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return int(any(row.get("deviation", 0) > 0.1 for row in rows))


def peak_bytes(
    parameters: int, small: int, stage: int, ranks: int, precision: str, optimizer: str, gathered_twice: bool
) -> float:
    """Bytes of a rank, by the formula at the top of this file. parameters: elements of all; small: elements of those
    that stage 3 keeps whole. gathered_twice: True for gloo."""
    state, work = STATE_BYTES[optimizer], WORK_BYTES[optimizer]
    b, p = (2 if precision == "fp16" else 4), float(parameters)
    share = p / ranks
    bucket = b * min(max(p // 8, 1e6), 2e8)
    if stage == 0:
        masters = 4 * p if precision == "fp16" else 0.0
        flat = 0.0 if precision == "fp32" and ranks > 1 else b * p
        return b * p + state * p + masters + b * p + max(flat, masters, work * p)
    if stage == 3:
        cast = p if precision == "bf16" else 0.0
        moving, step = b * small + (6 + 5 / ranks) * bucket + cast, work * share + (4 + 5 / ranks) * bucket
        return (2 * b + 4 + state) * share + max(moving, step)
    backward = b * (p if stage == 1 else share) + bucket
    step = (b + 4 + work) * share + 2 * bucket
    publish = 2 * bucket + (b * p if gathered_twice else 0.0)
    return b * p + (4 + state) * share + max(backward, step, publish)


def table(models: list[str], worlds: list[int], precision: str) -> list[dict[str, Any]]:
    """A row for each network, stage and number of ranks, computed for NCCL; "computed" in bytes."""
    rows = []
    for name in models:
        count, small = parameters_of(name)
        for stage in range(4):
            for ranks in worlds:
                peak = peak_bytes(count, small, stage, ranks, precision, MODELS[name][1], gathered_twice=False)
                row = {"network": name, "optimizer": MODELS[name][1], "parameters": count, "precision": precision}
                rows.append(row | {"stage": stage, "ranks": ranks, "computed": peak})
    return rows


def measured(models: list[str], precision: str) -> list[dict[str, Any]]:
    """The same for 1, 2 and 4 gloo ranks of this machine, if they fit: "computed", "measured" (bytes), "deviation"."""
    cases = table(models, [1, 2, 4], precision)
    rows = []
    with progress_bar(len(cases), "cases", "case", True) as bar:
        for case in cases:
            model, optimizer = MODELS[case["network"]]
            stage, ranks = case["stage"], case["ranks"]
            count, small = parameters_of(case["network"])
            peak = peak_bytes(count, small, stage, ranks, precision, optimizer, gathered_twice=ranks > 1)
            if peak * ranks < FITS:
                rank_case = Case(case["network"], model, optimizer, stage, ranks, precision)
                highest = 1e6 * max(rank["peak"] for rank in run(rank_case))
                deviation = abs(peak - highest) / highest
                rows.append(case | {"computed": peak, "measured": highest, "deviation": deviation})
            bar.update()
    return rows


def run(case: Case) -> list[dict[str, float]]:
    """The measurement of each rank of a case, with a new process for each. Raises RuntimeError if one fails."""
    with tempfile.TemporaryDirectory() as scratch:
        with environment({"MALLOC_MMAP_THRESHOLD_": "65536"}):  # glibc then returns freed memory to the system
            run_ranks(run_rank, case.ranks, case, Path(scratch), method="spawn")
        return [json.loads((Path(scratch) / f"{rank}.json").read_text()) for rank in range(case.ranks)]


def parameters_of(name: str) -> tuple[int, int]:
    """Elements of the whole network (backbone, head and prototypes), and of its small parameters only."""
    from model.shapes import only_shapes
    from training.build import build_network

    with only_shapes():
        sizes = [p.numel() for p in build_network(MODELS[name][0]).parameters()]
    return sum(sizes), sum(size for size in sizes if size < PERSISTENT)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a Markdown table, in GB of 1e9 bytes."""
    worlds = sorted({row["ranks"] for row in rows})
    print("| GB a rank | " + " | ".join(f"{n} rank{'s' if n > 1 else ''}" for n in worlds) + " |")
    print("| --- |" + " --- |" * len(worlds))
    lines = {(row["network"], row["stage"]): row for row in rows}
    for (network, stage), first in lines.items():
        cells = {row["ranks"]: cell(row) for row in rows if (row["network"], row["stage"]) == (network, stage)}
        head = (
            f"{network}, {first['parameters'] / 1e6:.0f} M, {first['optimizer']}, {first['precision']}, stage {stage}"
        )
        print(f"| {head} | " + " | ".join(cells.get(n, "") for n in worlds) + " |")


def cell(row: dict[str, Any]) -> str:
    if "measured" not in row:
        return f"{row['computed'] / GB:.2f}"
    return f"{row['computed'] / GB:.2f} / {row['measured'] / GB:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
