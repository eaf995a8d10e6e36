"""Where the host waits for its device within a step: reads of values, synchronizations of device, streams, events."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch


def count_waits(step: Callable[[], Any], device: torch.device) -> list[str]:
    """The places within `step` at which the host waits, as file:line. On a GPU torch's debug mode finds reads and
    copies; on a CPU, which has nothing to wait for, only calls that would wait for a GPU count."""
    with _synchronizations() as places:
        if device.type != "cuda":
            step()
            return places
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    reads = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    return reads + places


@contextmanager
def _synchronizations() -> Iterator[list[str]]:
    """Within this context each call that waits for the device appends its caller's place. torch's debug mode does not
    see these calls: torch.cuda's, torch.accelerator's, and those of DeepSpeed's accelerator."""
    from deepspeed.accelerator import get_accelerator

    places: list[str] = []
    inside = False  # the accelerator calls torch.cuda's

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            outermost, inside = not inside, True
            if outermost:
                frame = sys._getframe(1)
                places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            try:
                return function(*arguments, **named)
            finally:
                inside = inside and not outermost

        return call

    owners: list[Any] = [type(get_accelerator()), torch.accelerator, torch.cuda, torch.cuda.Stream, torch.cuda.Event]
    with ExitStack() as stack:
        for owner in owners:
            stack.callback(setattr, owner, "synchronize", owner.synchronize)
            owner.synchronize = counting(owner.synchronize)
        yield places
