"""Contenders take turns of a second or two, round after round, and never work at the same time.

If something slows the machine for a while, it slows all of them: therefore ratios are taken within a round.
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
    """One turn of a contender: images made, wall seconds, and CPU seconds of this process and its workers."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Contender:
    """A program that makes images: `turn(seconds)` works for about `seconds`, is idle before and after.

    mode: "full" (all crops, augmented, float32), "crops" (crops only, uint8) or "decode".
    cores: how many CPU cores it may use, and how many threads or worker processes it has.
    """

    backend: str
    mode: str
    cores: int
    turn: Callable[[float], Turn]


def timed(batches: Iterator[int], seconds: float, skip: int) -> Turn:
    """Time an endless iterator, which yields the size of each batch, for `seconds` and at least one batch.

    The first `skip` batches do not count: they come late, because the pipeline is empty at the start.
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
    """The turns of each contender, a list of `rounds` for each; each round begins with the next contender.

    warm_up: first turns of each contender that do not count. cores: the CPUs to use. done: called after each turn.
    """

    def take(contender: Contender, counts: bool) -> Turn:
        turn = one_turn(contender, seconds if counts else 0.0, cores)
        done()
        return turn

    return take_turns([partial(take, contender) for contender in contenders], rounds, warm_up)


def one_turn(contender: Contender, seconds: float, cores: Sequence[int]) -> Turn:
    """A turn of one contender on as many of `cores` as it may use; returns when its threads are idle again."""
    use_cores(cores[-contender.cores :])
    turn = contender.turn(seconds)
    use_cores(cores)
    wait_until_idle()
    return turn


def take_turns(works: Sequence[Callable[[bool], T]], rounds: int, warm_up: int = 1) -> list[list[T]]:
    """The results of each of `works`, a list of `rounds` for each, interleaved: each round begins with the next work.

    A work is called with True if the turn counts; turns of the first `warm_up` rounds do not. The order is the same on
    ranks that measure together.
    """
    results: list[list[T]] = [[] for _ in works]
    for round in range(-warm_up, rounds):
        for position in range(len(works)):
            index = (position + max(round, 0)) % len(works)
            result = works[index](round >= 0)
            if round >= 0:
                results[index].append(result)
    return results


def use_cores(cores: Sequence[int]) -> None:
    """Bind all threads of this process, and the threads that they start later, to these CPUs."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # the thread has ended
            continue


def wait_until_idle(longest: float = 10.0) -> None:
    """Wait until this process uses no CPU (reading ahead is finished), for `longest` seconds at most."""
    end = time.perf_counter() + longest
    while time.perf_counter() < end:
        cpu = time.process_time()
        time.sleep(0.03)
        if time.process_time() - cpu < 0.003:
            return


def cpu_seconds() -> tuple[float, float]:
    """CPU seconds of this machine so far, with the time lost to its host; and of this process and its workers."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest, own_cpu_seconds()


def own_cpu_seconds() -> float:
    """CPU seconds of this process and of its present workers; those of workers are rounded to 0.01 s."""
    seconds = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(child.cpu_times()[:2])
    return seconds


def within_rounds(one: Sequence[float], other: Sequence[float]) -> float:
    """The median over rounds of one / other, both of the same round."""
    return median(a / b for a, b in zip(one, other, strict=True))
