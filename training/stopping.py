"""What ends a run early: a stop signal, after which it saves and exits, or an error that training cannot survive."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from common.cli import print_error
from pipeline.dataset.table import DatasetError
from pipeline.remote.faults import end_soon

SAVED = "stopped by a signal, saved {}; the same command resumes from there"
STOPPED_EARLY = "stopped by a signal before the first step; the same command continues from here"


class StopSignal:
    """Set by SIGTERM, SIGUSR1 (a scheduler's warning), SIGHUP or Ctrl-C: the run saves after its step and exits.

    at_once: while true, a signal exits immediately by SystemExit(0). A single process that has not begun to train has
    nothing to save. A second Ctrl-C always exits immediately. alone: whether this is the only process, which can save
    between any two steps; another one may be within the next step, and waits there for the others.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received: str | None = None
        self.at_once, self.alone = at_once, False
        for number in stop_signals():
            signal.signal(number, self._receive)
            # Python would restore the default, and a signal that arrives while it ends would kill a run that is saved.
            atexit.register(signal.signal, number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())  # launch.start blocks them until here

    def _receive(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        end_soon()
        if self.at_once:
            print_error(STOPPED_EARLY, below_bar=True)
            raise SystemExit(0)

    def ends_wait(self) -> bool:
        """Whether there is no need to wait for the next batch."""
        return self.alone and self.received is not None


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a run to stop. Under nohup, SIGHUP is not one of them."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


class TrainingStopped(RuntimeError):
    """Training cannot go on. The message says why and what to do.

    on_all_ranks: whether all ranks stop for the same reason. Then only rank 0 prints the message.
    """

    def __init__(self, message: str, on_all_ranks: bool = True):
        super().__init__(message)
        self.on_all_ranks = on_all_ranks


def stopping_on_bad_data(loader: Iterable[Any], stop_signal: StopSignal) -> Iterator[Any]:
    """The loader's batches, and None where a stop signal ends the wait for the next one. Too many unreadable images on
    this rank, or a server that does not answer, raise TrainingStopped."""
    try:
        yield from loader
    except DatasetError as error:
        if stop_signal.ends_wait():
            yield None
            return
        unsaved = "stopped by a signal, but not saved: " if stop_signal.received else ""
        raise TrainingStopped(f"{unsaved}{error}", on_all_ranks=False) from None


def not_finite(step: int, what: object, last_saved: object) -> TrainingStopped:
    """The error of a loss that is not finite. what: the fault in words. last_saved: the last checkpoint, if any."""
    checkpoint = last_saved or "not saved yet"
    advice = "start a new run, in another run.directory, with a lower optimizer.base_lr"
    return TrainingStopped(f"step {step}: {what}; last good checkpoint: {checkpoint}; {advice}")
