"""What a rank does to time codes and their collectives; on a host of its own: `python -m perf.sinkhorn.ranks FOLDER`.

All ranks start once and form groups of 1, 2, 4, ...; these take turns, so that what slows the machine for a while
slows all of them, and a model fitted on small groups is held against large ones of the same minute.

On CPUs each rank stays on a core, in turn, and keeps the memory that it frees: where the kernel moves ranks about, an
all-reduce of two takes 100 to 210 us from one start to the next, where they stay 102 to 105 (seen on two cores).
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
from perf.roofline import finish
from perf.sinkhorn.variants import VARIANTS, Point
from training.distributed import wait_for_gloo

LEAST_ROUNDS = 3
CROWD = 2  # ranks on one core
TURN = 0.02  # seconds of calls in a turn, at least: the clock and the start are nothing against it


@dataclass(frozen=True)
class Plan:
    """What to measure over a link, what matters most first, until `deadline` (time.time()).

    groups: numbers of ranks. bytes: of all-reduces by themselves. points: of codes, in all groups.
    crowded: everything is timed of CROWD ranks that share a core, too. rounds: at most.
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
    """Seconds of one call, and of its collectives, the waiting for other ranks in them included."""

    seconds: float
    in_collectives: float


@dataclass
class Work:
    """One thing to time: a call in the group of the first `ranks`, an all-reduce of `bytes` or the codes of `point`.

    crowded: while these ranks share one core.
    """

    ranks: int
    bytes: int
    point: Point | None
    call: Callable[[], object]
    crowded: bool = False
    repeats: int = 1
    sent: list[tuple[str, int]] = field(default_factory=list)  # by one call: kind and bytes


def run_rank(rank: int, plan: Plan, folder: Path) -> None:
    """As a rank of perf.ranks.run_ranks or of a host; rank 0 writes `folder`/measured.json."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the program that started it speaks
    if not plan.on_gpu:
        # Ranks that wait wake others without taking the core from them: four on two cores take a quarter of the time.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        torch.set_num_threads(1)
        keep_memory()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if plan.on_gpu else torch.device("cpu")
    if plan.on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if plan.on_gpu else "gloo", timeout=timedelta(seconds=120))
    try:
        with torch.no_grad():
            found = measure(rank, plan, device)
        if rank == 0:
            (folder / "measured.json").write_text(json.dumps(found))
    finally:
        wait_for_gloo()
        dist.destroy_process_group()


def keep_memory() -> None:
    """Freed memory stays with this process, so that no page faults are timed (glibc; elsewhere nothing happens)."""
    with suppress(AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: from the heap, up to 1 GiB
        allocator.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: which is never given back


def measure(rank: int, plan: Plan, device: torch.device) -> list[dict[str, Any]]:
    """A row for each work that time allows."""
    alone = [dist.new_group([other]) for other in range(dist.get_world_size())][rank]
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in plan.groups}
    works = list(all_works(plan, groups, alone, device))
    chosen, rounds = choose(works, groups, plan, rank, device)
    with progress_bar(rounds * len(chosen), f"codes, {plan.link}", "turn", plan.progress and rank == 0) as bar:

        def turn(work: Work, counts: bool) -> Call:
            found = timed(work, groups[work.ranks], rank, device)
            bar.update()
            return found

        calls = take_turns([partial(turn, work) for work in chosen], rounds, warm_up=0)
    return [row(work, found) for work, found in zip(chosen, calls, strict=True)]


def all_works(plan: Plan, groups: dict[int, Any], alone: Any, device: torch.device) -> Iterator[Work]:
    """All-reduces by themselves, then codes, each in all groups."""
    for size in plan.bytes:
        values = torch.zeros(max(1, size // 4), device=device)
        calls = {ranks: partial(_all_reduce, values, group) for ranks, group in groups.items()}
        yield from _in_groups(plan, size, None, calls)
    scores: dict[tuple[int, int, int], Tensor] = {}
    for point in plan.points:
        shape = (point.crops, point.batch, point.prototypes)
        if shape not in scores:  # cosines of unit vectors of 128 numbers are about so
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
    """How many of `works`, from the first on, in how many rounds; each called twice for that, and its repeats set.

    Fewer works rather than fewer than LEAST_ROUNDS rounds; whether time is short is for rank 0 to say.
    """
    chosen: list[Work] = []
    needed = 0.0
    each = len(groups) + any(work.crowded for work in works)  # works of a point
    least = sum(work.point is None for work in works) + each  # what the model needs, and the first codes
    for work in works:
        begun = time.perf_counter()
        timed(work, groups[work.ranks], rank, device)
        once = timed(work, groups[work.ranks], rank, device).seconds
        repeats = min(200, 1 + int(TURN / max(once, 1e-9)))
        # What a turn takes besides its calls, the meeting of all ranks, is in the time of these two.
        turn = repeats * once + max(0.0, (time.perf_counter() - begun) / 2 - once)
        left = plan.deadline - time.time()
        go_on = needed + turn <= left / LEAST_ROUNDS or len(chosen) < least
        told = torch.tensor([repeats if go_on else 0], device=device)
        dist.broadcast(told, 0)
        if not told.item():
            break
        work.repeats = int(told.item())
        chosen.append(work)
        needed += turn
    fit = min(plan.rounds, max(LEAST_ROUNDS, int((plan.deadline - time.time()) / max(needed, 1e-9))))
    rounds = torch.tensor([fit], device=device)
    dist.broadcast(rounds, 0)
    whole = len(chosen) - len(chosen) % each  # a point in all groups or in none
    return chosen[:whole], int(rounds.item())


def timed(work: Work, group: Any, rank: int, device: torch.device) -> Call:
    """Seconds of a call, the median of the work's repeats; nothing on ranks that have no part in it."""
    cores = sorted(os.sched_getaffinity(0))
    if device.type == "cpu":
        use_cores([cores[0 if work.crowded else rank % len(cores)]])
    dist.barrier()
    found = _timed(work, group, device) if rank < work.ranks else Call(0.0, 0.0)
    if device.type == "cpu":
        use_cores(cores)
    return found


def _timed(work: Work, group: Any, device: torch.device) -> Call:
    marks = []
    with noted(group, device) as calls:
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
def noted(group: Any, device: torch.device) -> Iterator[list[tuple[str, int, Callable[[], float]]]]:
    """The collectives in `group` of this block: kind, bytes that this rank puts in, and a function: seconds taken."""
    found: list[tuple[str, int, Callable[[], float]]] = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_into_tensor")}

    def noting(name: str, kind: str, values: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if options.get("group") is not group:
                return originals[name](*arguments, **options)
            start = _mark(device)
            result = originals[name](*arguments, **options)
            end = _mark(device)
            found.append((kind, arguments[values].numel() * arguments[values].element_size(), partial(end, start)))
            return result

        return call

    try:
        dist.all_reduce = noting("all_reduce", "all_reduce", 0)
        dist.all_gather_into_tensor = noting("all_gather_into_tensor", "all_gather", 1)
        yield found
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _mark(device: torch.device) -> Any:
    """A point in time, called with an earlier one: seconds between."""
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
    place = Path(sys.argv[1])
    run_rank(int(os.environ["RANK"]), Plan.load(place), place)
