"""A rank that times codes and their collectives; on a virtual host: `python -m perf.sinkhorn.ranks FOLDER`.

All ranks start once and form groups of 1, 2, 4, ... that take turns: if something slows the machine for a while, it
slows all groups, and a model fitted on small groups is compared with large groups of the same minute.

On CPUs each rank stays on one core and keeps the memory that it frees. If the kernel moves ranks between cores, an
all-reduce of two takes 100 to 210 us from one start to the next; if they stay, 102 to 105 us (on two cores).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from common.progress import progress_bar
from perf.interleaved import take_turns, use_cores
from perf.sinkhorn.variants import VARIANTS, Point
from perf.step.roofline import finish
from training.distributed import cluster_from_environment, wait_for_gloo

MIN_ROUNDS = 3
CROWD = 2  # ranks that share one core in a crowded measurement
TURN = 0.02  # least seconds of calls in a turn: long against the clock's resolution and the start


@dataclass(frozen=True)
class Plan:
    """Measurements over a link until `deadline`, a time of time.time(); the most important points come first.

    groups: numbers of ranks. bytes: of all-reduces without codes. points: of codes, for all groups. crowded: time all
    also on CROWD ranks that share a core. rounds: at most.
    """

    link: str
    groups: tuple[int, ...]
    bytes: tuple[int, ...]
    points: tuple[Point, ...]
    deadline: float
    rounds: int
    on_gpu: bool = False
    crowded: bool = False
    progress: bool = True

    def __str__(self) -> str:
        return f"timing codes, {self.link}"

    def save(self, folder: Path) -> None:
        (folder / "plan.json").write_text(json.dumps(asdict(self) | {"points": self.points}))

    @staticmethod
    def load(folder: Path) -> Plan:
        read = json.loads((folder / "plan.json").read_text())
        points = tuple(Point(*point) for point in read["points"])
        return Plan(**read | {"groups": tuple(read["groups"]), "bytes": tuple(read["bytes"]), "points": points})


class Call(NamedTuple):
    """Seconds of one call, and of its collectives with their waits for other ranks."""

    seconds: float
    in_collectives: float


@dataclass
class Work:
    """A call to time on the first `ranks`: an all-reduce of `bytes`, or the codes of `point`.

    crowded: these ranks share one core. repeats: calls in a turn.
    """

    ranks: int
    bytes: int
    point: Point | None
    call: Callable[[], object]
    crowded: bool = False
    repeats: int = 1
    sent: list[tuple[str, int]] = field(default_factory=list)  # collectives of one call: kind and bytes


def run_rank(rank: int, plan: Plan, folder: Path) -> None:
    """Run a rank, started by perf.ranks.run_ranks or on a host; rank 0 writes `folder`/measured.json."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent process prints the message
    if not plan.on_gpu:
        # With this policy a woken rank does not take the core from a running one: four ranks on two cores take a
        # quarter of the time.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        torch.set_num_threads(1)
        keep_memory()
    device = cluster_from_environment().take_device() if plan.on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if plan.on_gpu else "gloo", timeout=timedelta(seconds=120))
    try:
        with torch.no_grad():
            rows = measure(rank, plan, device)
        if rank == 0:
            (folder / "measured.json").write_text(json.dumps(rows))
    finally:
        wait_for_gloo()
        dist.destroy_process_group()


def keep_memory() -> None:
    """Make glibc keep freed memory, so that the times include no page faults; does nothing with other C libraries."""
    with suppress(AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: up to 1 GiB comes from the heap
        allocator.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: never return the heap


def measure(rank: int, plan: Plan, device: torch.device) -> list[dict[str, Any]]:
    """A row for each work that fits into the time."""
    alone = [dist.new_group([other]) for other in range(dist.get_world_size())][rank]
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in plan.groups}
    works = list(all_works(plan, groups, alone, device))
    chosen, rounds = choose(works, groups, plan, rank, device)
    with progress_bar(rounds * len(chosen), f"codes, {plan.link}", "turn", plan.progress and rank == 0) as bar:

        def turn(work: Work, counts: bool) -> Call:
            call = timed(work, groups[work.ranks], rank, device)
            bar.update()
            return call

        calls = take_turns([partial(turn, work) for work in chosen], rounds, warm_up=0)
    return [row(work, own_calls) for work, own_calls in zip(chosen, calls, strict=True)]


def all_works(plan: Plan, groups: dict[int, Any], alone: Any, device: torch.device) -> Iterator[Work]:
    """All-reduces without codes, then codes, each in all groups. alone: a process group of this rank only."""
    for size in plan.bytes:
        values = torch.zeros(max(1, size // 4), device=device)
        calls = {ranks: partial(_all_reduce, values, group) for ranks, group in groups.items()}
        yield from _in_groups(plan, size, None, calls)
    scores: dict[tuple[int, int, int], Tensor] = {}
    for point in plan.points:
        shape = (point.crops, point.batch, point.prototypes)
        if shape not in scores:  # distributed like cosines of unit vectors with 128 numbers
            scores[shape] = torch.randn(shape, device=device).mul_(0.09).clamp_(-1, 1)
        codes = partial(VARIANTS[point.variant], scores[shape], point.iterations)
        yield from _in_groups(plan, 0, point, {ranks: partial(codes, group, alone) for ranks, group in groups.items()})


def _in_groups(
    plan: Plan, bytes: int, point: Point | None, calls: Mapping[int, Callable[[], object]]
) -> Iterator[Work]:
    for ranks, call in calls.items():
        yield Work(ranks, bytes, point, call)
    if plan.crowded:
        yield Work(CROWD, bytes, point, calls[CROWD], crowded=True)


def _all_reduce(values: Tensor, group: Any) -> None:
    dist.all_reduce(values, group=group)


def choose(
    works: list[Work], groups: dict[int, Any], plan: Plan, rank: int, device: torch.device
) -> tuple[list[Work], int]:
    """The first of `works`, as many as fit into the time, and the number of rounds.

    Calls each work twice and sets its repeats. Takes fewer works instead of fewer than MIN_ROUNDS rounds. Rank 0
    decides for all ranks.
    """
    chosen: list[Work] = []
    needed = 0.0
    works_a_point = len(groups) + any(work.crowded for work in works)
    required = sum(work.point is None for work in works) + works_a_point  # those for the model, and the first codes
    for work in works:
        begun = time.perf_counter()
        timed(work, groups[work.ranks], rank, device)
        call_seconds = timed(work, groups[work.ranks], rank, device).seconds
        repeats = min(200, 1 + int(TURN / max(call_seconds, 1e-9)))
        # The other part of a turn, until all ranks have arrived, is in the time of these two calls.
        turn_seconds = repeats * call_seconds + max(0.0, (time.perf_counter() - begun) / 2 - call_seconds)
        left = plan.deadline - time.time()
        fits_in = needed + turn_seconds <= left / MIN_ROUNDS or len(chosen) < required
        decision = torch.tensor([repeats if fits_in else 0], device=device)
        dist.broadcast(decision, 0)
        if not decision.item():
            break
        work.repeats = int(decision.item())
        chosen.append(work)
        needed += turn_seconds
    rounds_that_fit = min(plan.rounds, max(MIN_ROUNDS, int((plan.deadline - time.time()) / max(needed, 1e-9))))
    rounds = torch.tensor([rounds_that_fit], device=device)
    dist.broadcast(rounds, 0)
    complete = len(chosen) - len(chosen) % works_a_point  # a point in all groups, or not at all
    return chosen[:complete], int(rounds.item())


def timed(work: Work, group: Any, rank: int, device: torch.device) -> Call:
    """The median call of the work's repeats; zeros on ranks outside its group."""
    cores = sorted(os.sched_getaffinity(0))
    if device.type == "cpu":
        use_cores([cores[0 if work.crowded else rank % len(cores)]])
    dist.barrier()
    call = _timed(work, group, device) if rank < work.ranks else Call(0.0, 0.0)
    if device.type == "cpu":
        use_cores(cores)
    return call


def _timed(work: Work, group: Any, device: torch.device) -> Call:
    marks = []
    with recorded(group, device) as calls:
        finish(device)
        for _ in range(work.repeats):
            marks.append(_mark(device))
            work.call()
        marks.append(_mark(device))
        finish(device)
    each = len(calls) // work.repeats
    work.sent = [(kind, size) for kind, size, _ in calls[:each]]
    seconds = [end(begin) for begin, end in pairwise(marks)]
    spans = [took() for _, _, took in calls]
    return Call(median(seconds), median(sum(spans[each * n : each * (n + 1)]) for n in range(work.repeats)))


@contextmanager
def recorded(group: Any, device: torch.device) -> Iterator[list[tuple[str, int, Callable[[], float]]]]:
    """Record the collectives in `group` within this block: kind, bytes of this rank, and a function for the seconds."""
    records: list[tuple[str, int, Callable[[], float]]] = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_into_tensor")}

    def recording(name: str, kind: str, values: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if options.get("group") is not group:
                return originals[name](*arguments, **options)
            start = _mark(device)
            result = originals[name](*arguments, **options)
            end = _mark(device)
            records.append((kind, arguments[values].numel() * arguments[values].element_size(), partial(end, start)))
            return result

        return call

    try:
        dist.all_reduce = recording("all_reduce", "all_reduce", 0)
        dist.all_gather_into_tensor = recording("all_gather_into_tensor", "all_gather", 1)
        yield records
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _mark(device: torch.device) -> Any:
    """The present time on the device; called with an earlier one it gives the seconds in between."""
    if device.type == "cpu":
        return _Instant(time.perf_counter())
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return _Instant(event)


@dataclass(frozen=True)
class _Instant:
    at: Any

    def __call__(self, earlier: _Instant) -> float:
        if isinstance(self.at, float):
            return self.at - earlier.at
        return earlier.at.elapsed_time(self.at) / 1000


def row(work: Work, calls: list[Call]) -> dict[str, Any]:
    return {
        "ranks": work.ranks,
        "crowded": work.crowded,
        "bytes": work.bytes,
        "point": work.point,
        "calls": calls,
        "sent": work.sent,
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_rank(int(os.environ["RANK"]), Plan.load(folder), folder)
