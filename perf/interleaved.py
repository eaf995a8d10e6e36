"""Turns: contenders work one after another for a second or two, round after round, and never at the same time.

What slows the machine for a while slows all of them, so ratios are taken within a round.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import psutil

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """What a contender did in one turn: images made, wall seconds, and CPU seconds of this process and its workers."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Contender:
    """Something that makes images: `turn(seconds)` works for about so long, from idle to idle.

    mode: "full" (all crops, augmented, float32), "crops" (crops only, uint8) or "decode".
    cores: CPU cores that it may use, and threads or worker processes that it was given.
    """

    backend: str
    mode: str
    cores: int
    turn: Callable[[float], Turn]


def timed(batches: Iterator[int], seconds: float, skip: int) -> Turn:
    """Time an endless iterator of batches (it yields how many images came) for `seconds` and at least one batch.

    The first `skip` batches are not counted: they come late, from a pipeline that was empty.
    """
    for _ in range(skip):
        next(batches)
    images, start, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        images += next(batches)
        taken = time.perf_counter() - start
        if taken >= seconds:
            return Turn(images, taken, time.process_time() - cpu)


def play(
    contenders: Sequence[Contender],
    rounds: int,
    seconds: float,
    cores: Sequence[int],
    done: Callable[[], object],
    warm_up: int = 1,
) -> list[list[Turn]]:
    """Turns of each contender, a list of `rounds`; whoever begins is another one each round.

    Every contender has `warm_up` first turns that do not count. cores: the CPUs to share out; `done` is called after a
    turn.
    """

    def take(contender: Contender, counts: bool) -> Turn:
        turn = one_turn(contender, seconds if counts else 0.0, cores)
        done()
        return turn

    return take_turns([partial(take, contender) for contender in contenders], rounds, warm_up)


def one_turn(contender: Contender, seconds: float, cores: Sequence[int]) -> Turn:
    """A turn of one contender on as many of `cores` as it may use, until nothing of it works any more."""
    use_cores(cores[-contender.cores :])
    turn = contender.turn(seconds)
    use_cores(cores)
    wait_until_idle()
    return turn


def take_turns(works: Sequence[Callable[[bool], T]], rounds: int, warm_up: int = 1) -> list[list[T]]:
    """What each of `works` returned, a list of `rounds`: interleaved, and whoever begins is another one each round.

    A work is called with whether the turn counts; the first `warm_up` rounds do not. Ranks that measure together get
    the same order.
    """
    found: list[list[T]] = [[] for _ in works]
    for round in range(-warm_up, rounds):
        for place in range(len(works)):
            which = (place + max(round, 0)) % len(works)
            result = works[which](round >= 0)
            if round >= 0:
                found[which].append(result)
    return found


def use_cores(cores: Sequence[int]) -> None:
    """Bind all threads of this process, and those that they will start, to these CPUs."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it ended meanwhile
            continue


def wait_until_idle(longest: float = 10.0) -> None:
    """Wait until the threads of this process rest (what was read ahead is done), `longest` seconds at most."""
    end = time.perf_counter() + longest
    while time.perf_counter() < end:
        cpu = time.process_time()
        time.sleep(0.03)
        if time.process_time() - cpu < 0.003:
            return


def cpu_seconds() -> tuple[float, float]:
    """CPU seconds that this machine has spent or lost to its host so far, and those of this process and its workers."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest, own_cpu_seconds()


def own_cpu_seconds() -> float:
    """CPU seconds of this process and of the workers that it has now, to a hundredth for the latter."""
    found = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += sum(child.cpu_times()[:2])
    return found


def within_rounds(one: Sequence[float], other: Sequence[float]) -> float:
    """Median over rounds of the ratio of two figures of the same round."""
    return median(a / b for a, b in zip(one, other, strict=True))
