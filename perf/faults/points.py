"""Faults inside a training process, at the n-th call of a function of swave: what `Place.start` has it prepare.

A point is `module:function` or `module:Class.method`; the function itself runs as always, before or after the fault.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 3600.0  # seconds; a held process that is not released ends by itself


def replace(point: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `change(function)` in the place of the function at the point, in this process."""
    module, _, path = point.partition(":")
    holder: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    real = getattr(holder, name)
    setattr(holder, name, functools.wraps(real)(change(real)))


def pause(point: str, stops: Sequence[int], folder: Path, only: int, rank: int) -> None:
    """Before each of these calls of the point, rank `only` leaves the file `reached`, waits for `go`, and removes
    both.
    """

    def change(real: Callable[..., Any]) -> Callable[..., Any]:
        calls = itertools.count(1)

        def paused(*arguments: Any, **options: Any) -> Any:
            if next(calls) in stops:
                (folder / "reached").write_text(str(os.getpid()))
                end = time.monotonic() + PATIENCE
                while not (folder / "go").exists():
                    if time.monotonic() > end:
                        os._exit(99)
                    time.sleep(0.005)
                (folder / "reached").unlink()
                (folder / "go").unlink()
            return real(*arguments, **options)

        return paused

    if rank == only:
        replace(point, change)


def bad_loss(call: int, value: float, gradient: float, only: int, rank: int) -> None:
    """The loss of step `call` on rank `only` is multiplied by `value`, its gradient by `gradient`."""

    def change(real: Callable[..., Any]) -> Callable[..., Any]:
        calls = itertools.count(1)

        def spoiled(*arguments: Any, **options: Any) -> Any:
            loss = real(*arguments, **options)
            if next(calls) != call:
                return loss
            loss.register_hook(lambda values: values * gradient)
            return loss * value

        return spoiled

    if rank == only:
        replace("model.objective:Objective.loss", change)


def slow_steps(seconds: float, only: int, rank: int) -> None:
    """Every step of rank `only` takes so many seconds more."""

    def change(real: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **options: Any) -> Any:
            time.sleep(seconds)
            return real(*arguments, **options)

        return slow

    if rank == only:
        replace("model.objective:Objective.loss", change)


def count_rows(file: Path, rank: int) -> None:
    """Count how often the run draws each row; the counts are written to `file` whenever its loader closes."""
    counts: Counter[int] = Counter()

    def take(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            batch = real(*arguments)
            counts.update(batch.rows.tolist())
            return batch

        return counted

    def close(real: Callable[..., Any]) -> Callable[..., Any]:
        def written(*arguments: Any) -> Any:
            file.write_text(json.dumps(counts))
            return real(*arguments)

        return written

    replace("pipeline.loader:Loader._take", take)
    replace("pipeline.loader:Loader.close", close)


def jump_clock(point: str, call: int, seconds: float, rank: int) -> None:
    """From call number `call` of the point on, time.time() gives that many seconds more."""
    now = time.time

    def change(real: Callable[..., Any]) -> Callable[..., Any]:
        calls = itertools.count(1)

        def later(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                time.time = lambda: now() + seconds
            return real(*arguments, **options)

        return later

    replace(point, change)
