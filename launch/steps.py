"""What the loop keeps count of: what all ranks know of the step before, when to save, skipped steps, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from config.recipe import parse_every
from launch.stopping import TrainingStopped


@dataclass(frozen=True)
class Agreed:
    """Of `step`: mean `loss` over the ranks (nan if not finite somewhere), and on how many ranks it was not finite."""

    step: int
    loss: float
    not_finite: int


class Agreement:
    """What all ranks know of the step before: mean loss, whether it is finite everywhere, whether one is to stop.

    One all-reduce of four numbers a step, started after the step and read after the next one, so that the host never
    waits for the device to finish a step.
    """

    def __init__(self, world_size: int):
        self.world_size = world_size
        self.stop = self.save = False  # whether some rank has wished so; once true they stay
        self._pending: tuple[int, Any, Callable[[], Any]] | None = None

    def exchange(self, step: int, loss: Any, stop: bool, save: bool = False) -> Agreed | None:
        """Start agreeing about `step` (loss: this rank's, a scalar tensor); the result for the step before, if any."""
        import torch
        import torch.distributed as dist

        before = self.settle()
        value = loss.detach().double()
        finite = torch.isfinite(value)
        wishes = [torch.full_like(value, float(wish)) for wish in (stop, save)]
        vector = torch.stack([torch.where(finite, value, 0.0), (~finite).double(), *wishes])
        work = dist.all_reduce(vector, async_op=True)
        vector_on_gpu = vector.is_cuda
        if vector_on_gpu:
            work.wait()  # the stream waits, not the host
            vector = vector.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending = step, vector, copied.synchronize if vector_on_gpu else work.wait
        return before

    def settle(self) -> Agreed | None:
        """The result for the step exchanged last, waiting for it if need be; None if it was already taken."""
        if self._pending is None:
            return None
        step, vector, wait = self._pending
        self._pending = None
        wait()  # for the collective (CPU) or for the copy to the host (GPU)
        total, bad, stop, save = vector.tolist()
        self.stop, self.save = self.stop or stop > 0, self.save or save > 0
        return Agreed(step, float("nan") if bad else total / self.world_size, int(bad))


class SaveRhythm:
    """When to save: `every` as in checkpoint.every; steps: of an epoch."""

    def __init__(self, every: str, steps: int) -> None:
        self.number, self.unit = parse_every(every)
        self.steps = steps
        self._last = time.monotonic()

    @property
    def wanted(self) -> bool:
        """Whether this rank's clock says so; the ranks agree on it by the Agreement."""
        if self.unit != "minute" or time.monotonic() - self._last < 60 * self.number:
            return False
        self._last = time.monotonic()
        return True

    def due(self, step: int, agreement: Agreement) -> bool:
        """Whether to save after `step`; a wish of the clock's is fulfilled by that."""
        if self.unit == "minute":
            wished, agreement.save = agreement.save, False
            return wished
        return self.number > 0 and step % (self.number * (self.steps if self.unit == "epoch" else 1)) == 0


class Clock:
    """Seconds of a run over all its starts: in all, and in its training loop."""

    def __init__(self) -> None:
        self._started = self._loop = time.monotonic()
        self._earlier = {"seconds": 0.0, "training_seconds": 0.0}

    def start_training(self) -> None:
        self._loop = time.monotonic()

    @property
    def in_loop(self) -> float:
        """Seconds in the training loop since this start."""
        return time.monotonic() - self._loop

    def state_dict(self) -> dict[str, float]:
        here = {"seconds": time.monotonic() - self._started, "training_seconds": self.in_loop}
        return {name: self._earlier[name] + value for name, value in here.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._earlier = dict(state)


class SkippedSteps:
    """Counts steps that fp16's dynamic loss scale has skipped; too many in a row end the run."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total, self.in_a_row = limit, 0, 0

    def count(self, step: int, applied: bool) -> None:
        """Take in whether `step` was applied. Raises TrainingStopped, on all ranks alike."""
        self.in_a_row = 0 if applied else self.in_a_row + 1
        self.total += not applied
        if self.in_a_row >= self.limit:
            raise TrainingStopped(
                f"step {step}: the gradients overflowed fp16 in {self.in_a_row} steps in a row, at ever lower loss "
                "scales; take engine.precision=bf16 or a lower optimizer.base_lr (engine.max_skipped_steps)"
            )
