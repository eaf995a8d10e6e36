"""Counters of the training loop: when to save, skipped steps, elapsed seconds."""

from __future__ import annotations

import time
from typing import Any

from config.every import parse_every
from training.step_agreement import Agreement
from training.stopping import TrainingStopped


class SaveRhythm:
    """Decides when to save. every: the text of checkpoint.every. steps: steps of an epoch."""

    def __init__(self, every: str, steps: int) -> None:
        self.number, self.unit = parse_every(every)
        self.steps = steps
        self._last = time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether this rank's clock asks for a save. The ranks agree on it through `Agreement`."""
        if self.unit != "minute" or time.monotonic() - self._last < 60 * self.number:
            return False
        self._last = time.monotonic()
        return True

    def due(self, step: int, agreement: Agreement) -> bool:
        """Whether to save after `step`. Clears a pending time-based save request."""
        if self.unit == "minute":
            requested, agreement.save = agreement.save, False
            return requested
        return self.number > 0 and step % (self.number * (self.steps if self.unit == "epoch" else 1)) == 0


class Clock:
    """Seconds of a run, summed over all its starts: in total, in the training loop, and those of the CPU that this
    process took in the loop (`cpu_seconds`), which depend little on what else runs on the machine."""

    def __init__(self) -> None:
        self._started = self._loop = time.monotonic()
        self._cpu = time.process_time()
        self._earlier = {"seconds": 0.0, "training_seconds": 0.0, "cpu_seconds": 0.0}

    def start_training(self) -> None:
        self._loop, self._cpu = time.monotonic(), time.process_time()

    def rate(self, images: int) -> float:
        """Images per second of the training loop since this start. images: the number trained since then."""
        return images / (time.monotonic() - self._loop)

    def state_dict(self) -> dict[str, float]:
        now = time.monotonic()
        since_start = {"seconds": now - self._started, "training_seconds": now - self._loop}
        since_start["cpu_seconds"] = time.process_time() - self._cpu
        return {name: self._earlier[name] + value for name, value in since_start.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        state = {"cpu_seconds": 0.0, **state}  # older checkpoints lack it
        self._earlier = {name: float(state[name]) for name in self._earlier}


class SkippedSteps:
    """Counts the steps that fp16's dynamic loss scale skips. `limit` skipped steps in a row end the run."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total, self.in_a_row = limit, 0, 0

    def values(self, engine: Any, steps: int) -> dict[str, float]:
        """Values for the log, in fp16 only: the share of skipped steps, and the loss scale. steps: since this start."""
        if not engine.fp16_enabled():
            return {}
        return {"skipped_steps": self.total / steps, "loss_scale": engine.loss_scale()}

    def count(self, step: int, applied: bool) -> None:
        """Record whether `step` was applied. Raises TrainingStopped, on all ranks together."""
        self.in_a_row = 0 if applied else self.in_a_row + 1
        self.total += not applied
        if self.in_a_row >= self.limit:
            raise TrainingStopped(
                f"step {step}: the gradients overflowed fp16 in {self.in_a_row} steps in a row, with falling loss "
                "scales; take engine.precision=bf16 or a lower optimizer.base_lr (engine.max_skipped_steps)"
            )
