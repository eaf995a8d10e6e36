"""What all ranks of a run know of each other.

Wishes (stop, save) are the hosts' own: they are agreed on in every step through the hosts' memory, which waits for no
device. What the devices compute (the loss, whether it is finite) stays there until a logging step or a save.
"""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from typing import Any

from training.profiling.step_times import StepTimes, compared
from training.rank_status import beat


@dataclass(frozen=True)
class Agreed:
    """Of `step`: mean `loss` over the ranks; the first step since the last one shared in which a loss was not finite,
    if any, and on how many ranks; the `ranks`' times since then (`training.profiling.step_times.compared`)."""

    step: int
    loss: float
    bad_step: int | None
    bad_ranks: int
    ranks: dict[str, Any]


class Agreement:
    """All ranks call `exchange` after each step and hear what was agreed on about the step before.

    every: steps between those whose losses are shared (run.log_every). At one the ranks' rows of two float64 numbers
    are gathered and sent to the host; it reads them after the next step is on its way. The ranks' times go through the
    hosts' memory. Needs the process group.
    """

    def __init__(self, world_size: int, device: Any, every: int) -> None:
        import torch
        import torch.distributed as dist

        self.world_size, self.every = world_size, every
        self.stop = self.save = False  # whether some rank has wished so; once true they stay
        self._step = self._read = 0  # the last one exchanged, the last one whose row was read
        self._fine = torch.tensor(math.inf, dtype=torch.float64, device=device)
        self._row = torch.stack([self._fine, self._fine])  # loss, first step in which it was bad
        self._timed: Any = None
        self._rows: tuple[Any, Any] | None = None  # on their way to the host, and what to wait for
        on_host = dist.get_backend() == "gloo"
        self._hosts = None if on_host else dist.new_group(backend="gloo")
        self._wishes = torch.zeros(2, dtype=torch.float64)
        self._heard = self._wishes.numpy()  # the same memory: read as the host's own
        self._wished: Any = None
        self.times, self._names = StepTimes(device), [""] * world_size
        self._times = torch.zeros(world_size * 2, dtype=torch.float64)
        self._times_here = self._times.numpy().reshape(-1, 2)
        dist.all_gather_object(self._names, socket.gethostname(), group=self._hosts)

    def exchange(self, step: int, loss: Any, stop: bool, save: bool = False) -> Agreed | None:
        """Take in `step` (loss: this rank's, a scalar tensor). What was shared of the step before, if anything."""
        import torch
        import torch.distributed as dist

        beat(step)
        self._hear()
        self._heard[:] = stop, save
        self._wished = dist.all_reduce(self._wishes, op=dist.ReduceOp.MAX, group=self._hosts, async_op=True)

        value = loss.detach().double()
        bad = torch.where(torch.isfinite(value), math.inf, float(step))
        self._row = torch.stack([value, torch.minimum(bad, self._row[1])])
        before, self._step = self._look(), step
        if step % self.every == 0:
            self._share()
        return before

    def settle(self) -> Agreed | None:
        """The same of the step exchanged last, waiting for the device; None if it was already given."""
        self._hear()
        if self._rows is None and self._read < self._step:
            self._share()
        return self._look()

    def _hear(self) -> None:
        if self._wished is not None:
            self._wished.wait()
            self._wished = None
            self.stop, self.save = self.stop or self._heard[0] > 0, self.save or self._heard[1] > 0

    def _share(self) -> None:
        import torch
        import torch.distributed as dist

        times = torch.tensor(self.times.take(), dtype=torch.float64)
        self._timed = dist.all_gather_into_tensor(self._times, times, group=self._hosts, async_op=True)
        rows = torch.empty(self.world_size * 2, dtype=torch.float64, device=self._row.device)
        work = dist.all_gather_into_tensor(rows, self._row, async_op=True)
        self._row = torch.stack([self._fine, self._fine])
        if not rows.is_cuda:
            self._rows = rows, work.wait
            return
        work.wait()  # the stream waits, not the host
        rows = rows.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._rows = rows, copied.synchronize

    def _look(self) -> Agreed | None:
        if self._rows is None:
            return None
        rows, wait = self._rows
        self._rows = None
        wait()  # for the collective (CPU) or for the copy to the host (GPU)
        losses, bad_steps = zip(*rows.view(-1, 2).tolist(), strict=True)
        self._read, first = self._step, min(bad_steps)
        self._timed.wait()
        ranks = compared(self._times_here.tolist(), self._names)
        bad_step, bad_ranks = (int(first), bad_steps.count(first)) if first < math.inf else (None, 0)
        return Agreed(self._step, sum(losses) / self.world_size, bad_step, bad_ranks, ranks)
