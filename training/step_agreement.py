"""How the ranks of a run agree: on stopping and saving in every step, on losses at logging steps.

Requests (stop, save) are exchanged through host memory, so no rank waits for a device. Losses, and whether they are
finite, stay on the device until a logging step or a save.
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
    """The ranks' common result of `step`.

    loss: mean over the ranks, in nats. bad_step: the first step since the last logged one whose loss was not finite,
    if any; bad_ranks: on how many ranks. ranks: their times since then (`training.profiling.step_times.compared`).
    """

    step: int
    loss: float
    bad_step: int | None
    bad_ranks: int
    ranks: dict[str, Any]


class Agreement:
    """All ranks call `exchange` after each step and get the common result of the step before.

    every: losses are shared every so many steps (run.log_every). At such a step each rank gives two float64 numbers;
    they are gathered on the device and copied to the host, which reads them after it has queued the next step. The
    ranks' times are exchanged through host memory. Needs the process group.
    """

    def __init__(self, world_size: int, device: Any, every: int) -> None:
        import torch
        import torch.distributed as dist

        self.world_size, self.every = world_size, every
        self.stop = self.save = False  # whether any rank has asked for it; once true, they stay true
        self._step = self._read = 0  # the last step exchanged, the last step whose row was read
        self._fine = torch.tensor(math.inf, dtype=torch.float64, device=device)
        self._row = torch.stack([self._fine, self._fine])  # loss, first step whose loss was not finite
        self._times_exchange: Any = None
        self._rows: tuple[Any, Any] | None = None  # being copied to the host, and what waits for them
        on_host = dist.get_backend() == "gloo"
        self._hosts = None if on_host else dist.new_group(backend="gloo")
        self._requests = torch.zeros(2, dtype=torch.float64)
        self._requests_on_host = self._requests.numpy()  # the same memory
        self._exchange: Any = None
        self.times, self._names = StepTimes(device), [""] * world_size
        self._times = torch.zeros(world_size * 2, dtype=torch.float64)
        self._times_on_host = self._times.numpy().reshape(-1, 2)
        dist.all_gather_object(self._names, socket.gethostname(), group=self._hosts)

    def exchange(self, step: int, loss: Any, stop: bool, save: bool = False) -> Agreed | None:
        """Add `step` to the exchange; returns the common result of the step before where it was shared.

        loss: this rank's, a scalar tensor. stop, save: whether this rank asks for it.
        """
        import torch
        import torch.distributed as dist

        beat(step)
        self._receive_requests()
        self._requests_on_host[:] = stop, save
        self._exchange = dist.all_reduce(self._requests, op=dist.ReduceOp.MAX, group=self._hosts, async_op=True)

        value = loss.detach().double()
        bad = torch.where(torch.isfinite(value), math.inf, float(step))
        self._row = torch.stack([value, torch.minimum(bad, self._row[1])])
        before, self._step = self._read_losses(), step
        if step % self.every == 0:
            self._share_losses()
        return before

    def settle(self) -> Agreed | None:
        """The common result of the last step, waiting for the device. None if it was already returned."""
        self._receive_requests()
        if self._rows is None and self._read < self._step:
            self._share_losses()
        return self._read_losses()

    def _receive_requests(self) -> None:
        if self._exchange is not None:
            self._exchange.wait()
            self._exchange = None
            self.stop, self.save = (
                self.stop or self._requests_on_host[0] > 0,
                self.save or self._requests_on_host[1] > 0,
            )

    def _share_losses(self) -> None:
        import torch
        import torch.distributed as dist

        times = torch.tensor(self.times.take(), dtype=torch.float64)
        self._times_exchange = dist.all_gather_into_tensor(self._times, times, group=self._hosts, async_op=True)
        rows = torch.empty(self.world_size * 2, dtype=torch.float64, device=self._row.device)
        work = dist.all_gather_into_tensor(rows, self._row, async_op=True)
        self._row = torch.stack([self._fine, self._fine])
        if not rows.is_cuda:
            self._rows = rows, work.wait
            return
        work.wait()  # the CUDA stream waits, the host does not
        rows = rows.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._rows = rows, copied.synchronize

    def _read_losses(self) -> Agreed | None:
        if self._rows is None:
            return None
        rows, wait = self._rows
        self._rows = None
        wait()  # for the collective (CPU) or for the copy to the host (GPU)
        losses, bad_steps = zip(*rows.view(-1, 2).tolist(), strict=True)
        self._read, first = self._step, min(bad_steps)
        self._times_exchange.wait()
        ranks = compared(self._times_on_host.tolist(), self._names)
        bad_step, bad_ranks = (int(first), bad_steps.count(first)) if first < math.inf else (None, 0)
        return Agreed(self._step, sum(losses) / self.world_size, bad_step, bad_ranks, ranks)
