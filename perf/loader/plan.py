"""How to spend a budget of seconds: pure functions that choose how long and how often to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TURN = (0.1, 1.5)  # seconds of a turn: shortest, longest
SHORT = 200.0  # seconds; a smaller budget leaves something out


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    images: at most. rounds, seconds: of turns and of a turn (None: as the budget allows). stage_rounds: for the
    kernel's stages. memory_of: "all", "loaders" (those that a training can use) or "none". gpu_half: measure also the
    memory of the ffcv backend on a GPU's host. sweep, sweep_rounds, sweep_seconds: whether there is a sweep, its rounds
    and the seconds of its turns.
    """

    images: int
    rounds: int
    seconds: float | None
    stage_rounds: int
    memory_of: str
    gpu_half: bool
    sweep: bool
    sweep_rounds: int
    sweep_seconds: float


def plan(
    budget: float | None,
    images: int | None,
    rounds: int | None,
    seconds: float | None,
    memory: bool,
    sweep: bool | None,
    batch: int,
) -> Plan:
    """A plan for `budget` seconds (None: no limit). The other arguments are the user's and stay; None: not given."""
    if budget is None:
        return Plan(
            images=images or max(1200, batch),
            rounds=rounds or 5,
            seconds=seconds or 1.5,
            stage_rounds=10,
            memory_of="all" if memory else "none",
            gpu_half=memory,
            sweep=bool(sweep),
            sweep_rounds=min(3, rounds or 3),
            sweep_seconds=min(0.5, seconds or 0.5),
        )
    short = budget < SHORT
    return Plan(
        images=images or max(600 if short else 1200, batch),
        rounds=rounds or (3 if short else 5),
        seconds=seconds,
        stage_rounds=3 if short else 10,
        memory_of="none" if not memory else "loaders" if short else "all",
        gpu_half=memory and not short,
        sweep=sweep is None or sweep,
        sweep_rounds=2 if short else 3,
        sweep_seconds=0.25 if short else 0.5,
    )


def turn_seconds(fixed: Sequence[float], rounds: int, available: float) -> float:
    """Length of a turn, so that `rounds` turns of all contenders take `available` seconds.

    fixed: for each contender the seconds that a turn takes in addition (batches that do not count).
    """
    left = available / rounds - sum(fixed)
    low, high = TURN
    return min(high, max(low, left / max(1, len(fixed))))


def rounds_within(fixed: Sequence[float], seconds: float, rounds: int, available: float) -> int:
    """As many of `rounds` as fit into `available` seconds; but at least three (or `rounds`), since fewer are no use."""
    each = sum(fixed) + seconds * len(fixed)
    return max(min(3, rounds), min(rounds, int(available / each)))
