"""Times of a rank before it meets the others in a step: waiting for data, and the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any


class StepTimes:
    """Seconds per step of this rank until its scores are ready. Before that, only batch norm's collectives wait."""

    def __init__(self, device: Any) -> None:
        import torch

        self._event = torch.cuda.Event if torch.device(device).type == "cuda" else None
        self._waited = self._forward = self._begun = 0.0
        self._steps = 0
        self._marks: list[tuple[Any, Any]] = []  # events before and after the forward passes, on a GPU
        self._before: Any = None
        self.listener: Callable[[str], None] | None = None  # gets the marks of a step while it is profiled

    def waits(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Iterate over the batches and time the wait for each."""
        iterator = iter(batches)
        while True:
            self.mark("data_wait")
            begun = perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._begun = perf_counter()
            self._waited += self._begun - begun
            self._steps += 1
            self._before = self._mark()
            self.mark("copy")
            yield batch
            self.mark("end")

    def mark(self, place: str) -> None:
        """Mark where the step is: data_wait, copy, codes, loss, end."""
        if place == "codes":
            self._forward_ended()
        if self.listener is not None:
            self.listener(place)

    def _forward_ended(self) -> None:
        """End the time of the forward pass. Of several parts of a batch only the first one counts."""
        if self._begun:
            self._forward += perf_counter() - self._begun
            self._begun = 0.0
            if self._event is not None:
                self._marks.append((self._before, self._mark()))

    def take(self) -> tuple[float, float]:
        """Mean seconds per step since the last call: waiting for data, forward pass. Leaves out steps that a
        GPU has not finished, so it never waits."""
        steps = max(self._steps, 1)
        seconds = self._waited / steps, self._forward / steps
        if self._event is not None:
            done = [before.elapsed_time(after) / 1e3 for before, after in self._marks if after.query()]
            seconds = seconds[0], sum(done) / max(len(done), 1)
        self._waited, self._forward, self._steps, self._marks = 0.0, 0.0, 0, []
        return seconds

    def _mark(self) -> Any:
        if self._event is None:
            return None
        mark = self._event(enable_timing=True)
        mark.record()
        return mark


def compared(times: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
    """The entry of metrics.jsonl: each rank's seconds, their spread, and the slowest rank.

    times: a pair of `StepTimes.take` for each rank. names: each rank's host.
    """
    own = [waited + forward for waited, forward in times]
    slowest = own.index(max(own))
    return {
        "data_wait": [round(waited, 5) for waited, _ in times],
        "forward": [round(forward, 5) for _, forward in times],
        "spread": round(max(own) - min(own), 5),
        "slowest": f"rank {slowest} on {names[slowest]}",
    }
