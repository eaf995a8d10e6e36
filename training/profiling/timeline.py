"""Where the time of a training step goes: marks at the borders of its phases, read at the end.

A mark is a host time, or a CUDA event on a GPU. Nothing waits while the steps run.

    data_wait               waiting for the loader
    copy                    crops to the device, and cutting them into parts
    forward_global          the backbone on the global crops, and head and prototypes on all crops
    forward_local           the backbone on the local crops
    teacher                 its forward pass, and its average after the step; zero without one
    codes                   Sinkhorn and the queue, or the clusters of the rows
    loss
    backward
    gradient_communication  waits of backward and step for it; communication hidden behind them does not count
    optimizer               engine.step without its communication
    probe                   the online classifier; zero without one
    other                   monitors, agreement, saving

Collectives of batch norm, codes and monitors belong to the phase that calls them; `training.profiling.collectives`
lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import pairwise
from time import perf_counter
from typing import Any

PHASES = (
    "data_wait",
    "copy",
    "forward_global",
    "forward_local",
    "teacher",
    "codes",
    "loss",
    "backward",
    "gradient_communication",
    "optimizer",
    "probe",
    "other",
)
HELD_BACK = ("overlapping_partition_gradients_reduce_epilogue", "independent_gradient_partition_epilogue")
Span = tuple[str, float, float]  # name, begin and length in milliseconds


class Timeline:
    """The marks of this rank's steps. `mark` begins a phase and ends the one before."""

    def __init__(self, device: Any) -> None:
        self._stream: Any = None
        if device.type == "cuda":
            import torch

            self._stream, self._torch = torch.cuda.current_stream(device), torch
        self._steps: list[list[tuple[str, Any]]] = []
        self._marks: list[tuple[str, Any]] = []
        self.phase = "other"
        self.origin = self.now()

    def now(self) -> Any:
        """A host time in seconds, or a CUDA event. None in another stream than the steps', which hide its work."""
        if self._stream is None:
            return perf_counter()
        if self._torch.cuda.current_stream(self._stream.device) != self._stream:
            return None
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def mark(self, phase: str) -> None:
        """Begin `phase`."""
        time = self.now()
        if time is not None:
            self.phase = phase
            self._marks.append((phase, time))

    def begin_step(self) -> None:
        """Begin a step, with the wait for its data. Drops a step that did not end."""
        self._marks = []
        self.mark("data_wait")

    def end_step(self) -> None:
        self.mark("end")
        self._steps.append(self._marks)
        self._marks = []

    def hear(self, place: str) -> None:
        """Take a mark of the training loop: a phase, or "end"."""
        if place == "data_wait":
            self.begin_step()
        elif place == "end":
            self.end_step()
        else:
            self.mark(place)

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """`phase` within the block, and the earlier phase after it."""
        before = self.phase
        self.mark(phase)
        try:
            yield
        finally:
            self.mark(before)

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Milliseconds between two results of `now` that have both passed."""
        return (end - begin) * 1e3 if self._stream is None else begin.elapsed_time(end)

    def spans(self) -> list[list[Span]]:
        """The spans of each step, from the origin on. On a GPU this waits for the device."""
        if self._stream is not None:
            self._stream.synchronize()
        return [
            [
                (phase, self.milliseconds(self.origin, begin), self.milliseconds(begin, end))
                for (phase, begin), (_, end) in pairwise(marks)
            ]
            for marks in self._steps
        ]


def phase_sums(spans: Sequence[Span]) -> dict[str, float]:
    """Milliseconds of each of PHASES in a step."""
    sums = dict.fromkeys(PHASES, 0.0)
    for phase, _, length in spans:
        sums[phase] += length
    return sums


@contextmanager
def watching(timeline: Timeline, engine: Any, monitor: Any, teacher: Any = None, probe: Any = None) -> Iterator[None]:
    """Within the block, calls of engine, monitor, teacher and probe make marks: forward, backward, gradient
    communication, step.

    The training loop itself marks the wait for data, the copy, the codes and the loss.
    """
    with ExitStack() as stack:

        def around(owner: Any, name: str, phase: str) -> None:
            method = getattr(owner, name, None)
            if method is None:
                return
            own = name in vars(owner)

            @wraps(method)
            def call(*values: Any, **named: Any) -> Any:
                with timeline.inside(phase):
                    return method(*values, **named)

            setattr(owner, name, call)
            stack.callback(setattr, owner, name, method) if own else stack.callback(delattr, owner, name)

        around(engine, "backward", "backward")
        around(engine, "step", "optimizer")
        around(engine, "_backward_epilogue", "gradient_communication")
        for name in HELD_BACK:
            around(engine.optimizer, name, "gradient_communication")
        around(monitor, "update", "other")
        around(probe, "update", "probe")
        around(teacher, "follow", "teacher")

        def begins(_module: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
            return (_Crops(values[0], timeline), *values[1:]) if isinstance(values[0], list) else values

        def ends(_module: Any, _values: Any, _result: Any) -> None:
            timeline.mark("other")

        handles = [engine.module.register_forward_pre_hook(begins), engine.module.register_forward_hook(ends)]
        if teacher is not None:
            handles += [
                teacher.network.register_forward_pre_hook(lambda *_: timeline.mark("teacher")),
                teacher.network.register_forward_hook(lambda *_: timeline.mark("codes")),
            ]
        for handle in handles:
            stack.callback(handle.remove)
        yield


class _Crops(list):
    """The crops of a step, one tensor per resolution, the global ones first. Iterating over them makes marks."""

    def __init__(self, crops: Sequence[Any], timeline: Timeline) -> None:
        super().__init__(crops)
        self._timeline = timeline

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            self._timeline.mark("forward_local" if index else "forward_global")
            yield self[index]
        self._timeline.mark("forward_global")
