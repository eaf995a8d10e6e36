"""What a step communicates: each collective with its purpose, its bytes and how long it delayed the step.

`counting` replaces torch.distributed's functions for a while and synchronizes nothing. On a CPU (gloo) the time of a
collective is that of its call, and of the wait for it if it is asynchronous. On a GPU it is the time between two events
around them, including the wait for other ranks. A collective in another stream has no time: the step hides it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from config.recipe import ROOT
from training.profiling.timeline import Timeline

NAMES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "broadcast",
    "gather",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)
# weights: all-gathers of partitioned parameters (ZeRO)
KINDS = ("gradients", "batch_norm", "codes", "weights", "other")
CALLERS = (  # file or folder -> kind; the first entry that fits counts
    (f"{ROOT}/model/batchnorm.py", "batch_norm"),
    (f"{ROOT}/model/sinkhorn.py", "codes"),
    (f"{ROOT}/model/sinkhorn_fused.py", "codes"),
    (f"{ROOT}/model/", "other"),
    (f"{ROOT}/training/gradient_averaging.py", "gradients"),
    (f"{ROOT}/training/", "other"),
    ("/deepspeed/runtime/", "gradients"),
)
WAIT = "wait"
Call = tuple[str, str, int, Any, Any]  # kind, name, bytes, begin and end as times of the timeline


@contextmanager
def counting(timeline: Timeline) -> Iterator[list[Call]]:
    """Within the block, the list gets an entry for each collective of this process."""
    import torch.distributed as dist

    calls: list[Call] = []
    with ExitStack() as stack:
        for name in NAMES:
            original = getattr(dist, name)
            counted = _counted(name, original, timeline, calls)
            for owner, attribute in ((dist, name), *_references_in_deepspeed(original)):
                setattr(owner, attribute, counted)
                stack.callback(setattr, owner, attribute, original)
        yield calls


def _counted(name: str, original: Any, timeline: Timeline, calls: list[Call]) -> Any:
    @wraps(original)
    def call(*values: Any, **named: Any) -> Any:
        kind = kind_of(name, sys._getframe(1))
        given = (*values, *named.values())
        if timeline.phase in ("backward", "optimizer") and kind in ("gradients", "weights"):
            with timeline.inside("gradient_communication"):
                begin, result, end = timeline.now(), original(*values, **named), timeline.now()
        else:
            begin, result, end = timeline.now(), original(*values, **named), timeline.now()
        calls.append((kind, name, max(map(_bytes, given)), begin, end))
        return _Awaited(result, kind, timeline, calls) if named.get("async_op") else result

    return call


class _Awaited:
    """The handle of an asynchronous collective. Its `wait` is recorded as a separate call of 0 bytes."""

    def __init__(self, work: Any, kind: str, timeline: Timeline, calls: list[Call]) -> None:
        self._work, self._kind, self._timeline, self._calls = work, kind, timeline, calls

    def wait(self, *values: Any) -> Any:
        begin, result, end = self._timeline.now(), self._work.wait(*values), self._timeline.now()
        self._calls.append((self._kind, WAIT, 0, begin, end))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def kind_of(name: str, frame: Any) -> str:
    """One of KINDS, by the innermost caller in swave or in DeepSpeed's engine."""
    while frame is not None:
        path = frame.f_code.co_filename
        for part, kind in CALLERS:
            if part in path and path != __file__:
                return "weights" if kind == "gradients" and name.startswith("all_gather") else kind
        frame = frame.f_back
    return "other"


def _bytes(value: Any) -> int:
    """Bytes of a tensor or of a list of tensors; 0 for anything else."""
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return value.numel() * value.element_size() if hasattr(value, "element_size") else 0


def _references_in_deepspeed(function: Any) -> list[tuple[Any, str]]:
    """The attributes in which DeepSpeed's backend stores this function."""
    from deepspeed import comm

    backend = getattr(comm.comm, "cdb", None)
    return [(backend, name) for name, value in vars(backend).items() if value is function] if backend else []


def timed(timeline: Timeline, calls: Sequence[Call]) -> list[tuple[str, str, int, float, float | None]]:
    """Kind, name, bytes, begin (from the timeline's origin) and length of each call; ms, None where it has no time."""
    rows: list[tuple[str, str, int, float, float | None]] = []
    for kind, name, size, begin, end in calls:
        if begin is None or end is None:
            rows.append((kind, name, size, 0.0, None))
        else:
            at = timeline.milliseconds(timeline.origin, begin)
            rows.append((kind, name, size, at, timeline.milliseconds(begin, end)))
    return rows


def by_kind(calls: Sequence[tuple[str, str, int, float, float | None]], steps: int) -> list[dict[str, Any]]:
    """A row for each kind that occurs: its collectives, bytes and milliseconds per step."""
    rows = []
    for kind in KINDS:
        own = [call for call in calls if call[0] == kind]
        if own:
            lengths = [call[4] for call in own if call[4] is not None]
            rows.append(
                {
                    "kind": kind,
                    "count": round(sum(call[1] != WAIT for call in own) / steps, 2),
                    "bytes": round(sum(call[2] for call in own) / steps),
                    "ms": round(sum(lengths) / steps, 4),
                    "hidden": len(own) - len(lengths),
                }
            )
    return rows
