"""Steps of all ranks as a trace that https://ui.perfetto.dev and chrome://tracing show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def trace(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The trace as JSON: a process for each rank, with a track of phases and a track of collectives.

    ranks: results of `training.profiling.profile.of_rank`.
    """
    return {"displayTimeUnit": "ms", "traceEvents": [event for rank in ranks for event in _events(rank)]}


def _events(rank: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    number = rank["rank"]
    yield _name("process_name", number, 0, f"rank {number} on {rank['host']}")
    for track, name in enumerate(("phases", "collectives")):
        yield _name("thread_name", number, track, name)
    for step, spans in enumerate(rank["spans"]):
        for phase, begin, length in spans:
            yield _span(phase, number, 0, begin, length, {"step": step})
    for kind, name, size, begin, length in rank["collectives"]:
        if length is not None:
            yield _span(f"{kind}: {name}", number, 1, begin, length, {"bytes": size})


def _name(what: str, rank: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": rank, "tid": track, "args": {"name": name}}


def _span(
    name: str, rank: int, track: int, begin: float, length: float, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """A complete event; times are in microseconds."""
    times = {"ts": round(1e3 * begin, 1), "dur": round(1e3 * length, 1)}
    return {"ph": "X", "name": name, "pid": rank, "tid": track, **times, "args": dict(arguments)}
