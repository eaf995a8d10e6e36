"""Where a rank's step goes before it meets the others: waiting for data, and the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any


class StepTimes:
    """Seconds a step of this rank until its scores are there: no collective but batch norm's has evened them out."""

    def __init__(self, device: Any) -> None:
        import torch

        self._event = torch.cuda.Event if torch.device(device).type == "cuda" else None
        self._waited = self._forward = self._begun = 0.0
        self._steps = 0
        self._marks: list[tuple[Any, Any]] = []  # events before and after the forward passes, on a GPU
        self._before: Any = None
        self.listener: Callable[[str], None] | None = None  # hears where a step is, while it is profiled

    def waits(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, and how long each was waited for."""
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
        """Where the step is: data_wait, copy, codes, loss, end."""
        if place == "codes":
            self._forward_ended()
        if self.listener is not None:
            self.listener(place)

    def _forward_ended(self) -> None:
        """The scores are there, or are on their way on a GPU. Of several parts of a batch only the first one counts."""
        if self._begun:
            self._forward += perf_counter() - self._begun
            self._begun = 0.0
            if self._event is not None:
                self._marks.append((self._before, self._mark()))

    def take(self) -> tuple[float, float]:
        """Mean seconds a step since the last call: waiting for data, and forward. Never waits for a GPU: steps that it
        has not finished are left out."""
        steps = max(self._steps, 1)
        found = self._waited / steps, self._forward / steps
        if self._event is not None:
            done = [before.elapsed_time(after) / 1e3 for before, after in self._marks if after.query()]
            found = found[0], sum(done) / max(len(done), 1)
        self._waited, self._forward, self._steps, self._marks = 0.0, 0.0, 0, []
        return found

    def _mark(self) -> Any:
        if self._event is None:
            return None
        mark = self._event(enable_timing=True)
        mark.record()
        return mark


def compared(times: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
    """What metrics.jsonl gets of all ranks' times (`StepTimes.take`): seconds of each, and who was the slowest.

    names: of the ranks' hosts.
    """
    own = [waited + forward for waited, forward in times]
    slowest = own.index(max(own))
    return {
        "data_wait": [round(waited, 5) for waited, _ in times],
        "forward": [round(forward, 5) for _, forward in times],
        "spread": round(max(own) - min(own), 5),
        "slowest": f"rank {slowest} on {names[slowest]}",
    }
