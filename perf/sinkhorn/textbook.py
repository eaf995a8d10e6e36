"""Compares the speed of `model.sinkhorn` with that of the textbook algorithm, on the CPU, in the same run.

    python -m perf.sinkhorn --against-textbook [--json FILE] [--prototypes 3000] [--batch 64] [--threads 1,2] ...

    plain  Algorithm 1 of the SwAV paper without changes, crop by crop: exp, the global sum, then in turn the sums of
           the prototypes and of the samples; 8 all-reduces for 2 crops and 3 iterations
    ours   model.sinkhorn with check=False, as in training: both crops together, 3 all-reduces

Both take turns, round after round, on the same scores. Their codes must agree, otherwise the exit code is 1. With
several ranks each rank has one thread, and the time of a turn is that of the slowest rank.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from common.cli import EXIT_MISTAKE, Parser, print_error
from common.progress import progress_bar

if TYPE_CHECKING:  # heavy, so imported only after the arguments are checked
    import torch.distributed as dist
    from torch import Tensor

EPSILON, ITERATIONS, CROPS, WIDTH = 0.05, 3, 2, 128
AGREE = 1e-5  # largest difference of a code
WARM_UP = 3  # rounds


def main(arguments: list[str]) -> int:
    """The whole comparison. arguments: the command line without --against-textbook."""
    options = parsed(arguments)
    try:
        report = run(options)
    except ValueError as error:
        print_error(error)
        return EXIT_MISTAKE
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{options.json}: written")
    return 0 if report["agree"] else 1


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.sinkhorn --against-textbook", __doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--prototypes", type=int, default=3000, help="default 3000")
    parser.add_argument("--batch", type=int, default=64, help="images a rank (default 64)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads with one rank (default 1,2)")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks with one thread each (default 1,2)")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each (default 30)")
    parser.add_argument("--calls", type=int, default=5, help="calls in a turn (default 5)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The report. Raises ValueError for a mistake."""
    cases = checked(options)
    from perf.machine import machine

    machine_facts, measured = machine(), []
    with progress_bar(len(cases), "codes", "case", True) as bar:
        for ranks, threads in cases:
            measured.append(run_case(ranks, threads, options))
            bar.update()
    agree = all(row["difference"] <= AGREE for row in measured)
    return {"measured": measured, "agree": agree, "settings": settings_of(options), "machine": machine_facts}


def show(report: dict[str, Any]) -> None:
    """A line for each case."""
    for row in report["measured"]:
        print(
            f"{row['ranks']} ranks, {row['threads']} threads: plain {row['plain_ms']:.2f} ms, ours"
            f" {row['ours_ms']:.2f} ms, {row['faster']:.2f} times as fast;"
            f" all-reduces {row['plain_all_reduces']} and {row['ours_all_reduces']}; codes differ by"
            f" at most {row['difference']:.1e}"
        )


def checked(options: argparse.Namespace) -> list[tuple[int, int]]:
    """The cases, (ranks, threads of each). Raises ValueError for a mistake."""
    for name in ("prototypes", "batch", "rounds", "calls"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}={getattr(options, name)}: give 1 or more")
    lists = {}
    for name in ("threads", "ranks"):
        given = getattr(options, name)
        parts = given.split(",")
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"--{name}={given}: give whole numbers from 1 with commas between them, as in 1,2")
        lists[name] = [int(part) for part in parts]
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ValueError(f"--json={options.json}: there is no folder {options.json.parent}")
    cases = [(1, threads) for threads in lists["threads"]] + [(ranks, 1) for ranks in lists["ranks"]]
    return list(dict.fromkeys(cases))


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("prototypes", "batch", "rounds", "calls")}
    return given | {"epsilon": EPSILON, "iterations": ITERATIONS, "crops": CROPS}


def run_case(ranks: int, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the report: medians over rounds, measured in new processes."""
    from perf.interleaved import within_rounds
    from perf.ranks import run_ranks

    with tempfile.TemporaryDirectory() as scratch:
        run_ranks(measure, ranks, Path(scratch), ranks, threads, vars(options))
        reports = [json.loads((Path(scratch) / f"{rank}.json").read_text()) for rank in range(ranks)]
    plain, ours = (
        [max(times) for times in zip(*(report[name] for report in reports), strict=True)] for name in ("plain", "ours")
    )
    return {
        "ranks": ranks,
        "threads": threads,
        "plain_ms": median(plain),
        "ours_ms": median(ours),
        "faster": within_rounds(plain, ours),
        "plain_all_reduces": reports[0]["plain_all_reduces"],
        "ours_all_reduces": reports[0]["ours_all_reduces"],
        "difference": max(report["difference"] for report in reports),
        "rounds": {"plain_ms": plain, "ours_ms": ours},
    }


def measure(rank: int, folder: Path, ranks: int, threads: int, options: dict[str, Any]) -> None:
    """Run rank `rank` of `ranks`: time the turns of both and write `folder`/RANK.json."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as functional

    from model.sinkhorn import sinkhorn
    from perf.interleaved import take_turns

    torch.set_num_threads(threads)
    dist.init_process_group("gloo")
    try:
        random = torch.Generator().manual_seed(rank)
        embeddings = functional.normalize(torch.randn(CROPS, options["batch"], WIDTH, generator=random), dim=-1)
        prototypes = torch.randn(options["prototypes"], WIDTH, generator=torch.Generator().manual_seed(1_000))
        scores = embeddings @ functional.normalize(prototypes, dim=-1).T

        def ours() -> Tensor:
            return sinkhorn(scores, EPSILON, ITERATIONS, check=False)

        def textbook() -> Tensor:
            return textbook_codes(scores, EPSILON, ITERATIONS)

        def turn(work: Any, _counts: bool) -> float:
            dist.barrier()
            begun = perf_counter()
            for _ in range(options["calls"]):
                work()
            return (perf_counter() - begun) * 1e3 / options["calls"]

        plain_ms, ours_ms = take_turns([partial(turn, textbook), partial(turn, ours)], options["rounds"], WARM_UP)
        plain_calls, expected = all_reduces_of(textbook)
        our_calls, codes = all_reduces_of(ours)
        report = {
            "plain": plain_ms,
            "ours": ours_ms,
            "plain_all_reduces": plain_calls,
            "ours_all_reduces": our_calls,
            "difference": float((codes - expected).abs().max()),
        }
        (folder / f"{rank}.json").write_text(json.dumps(report))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def all_reduces_of(work: Any) -> tuple[int, Tensor]:
    """How many all-reduces `work()` calls, and what it returns."""
    import torch.distributed as dist

    calls, original = 0, dist.all_reduce

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*arguments, **named)

    dist.all_reduce = counting
    try:
        result = work()
        return calls, result
    finally:
        dist.all_reduce = original


def textbook_codes(
    crops: Tensor | Sequence[Tensor], epsilon: float, iterations: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The codes [crops, batch, prototypes] of scores with this shape, by Algorithm 1 of the SwAV paper, crop by crop.

    Over the ranks of `group` (None: all), or this process alone if torch.distributed is not initialized. exp(scores /
    epsilon) must be finite.
    """
    import torch

    with torch.no_grad():
        return torch.stack([_of_one_crop(scores, epsilon, iterations, group) for scores in crops])


def _of_one_crop(scores: Tensor, epsilon: float, iterations: int, group: dist.ProcessGroup | None) -> Tensor:
    import torch
    import torch.distributed as dist

    together = dist.is_available() and dist.is_initialized()

    def over_ranks(values: Tensor) -> Tensor:
        if together:
            dist.all_reduce(values, group=group)
        return values

    plan = torch.exp(scores / epsilon).t()  # [prototypes, samples], as in the paper
    prototypes, samples = plan.shape[0], plan.shape[1] * (dist.get_world_size(group) if together else 1)
    plan = plan / over_ranks(plan.sum())
    for _ in range(iterations):
        plan = plan / over_ranks(plan.sum(dim=1, keepdim=True)) / prototypes
        plan = plan / plan.sum(dim=0, keepdim=True) / samples
    return (plan * samples).t()
