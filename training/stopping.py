"""What ends a run early: a signal, on which it saves and leaves, or trouble that it cannot go on with."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import Any

from common.cli import print_error
from pipeline.dataset.table import DatasetError

STOPPED_EARLY = "stopped by a signal before the first step; the same command goes on from here"


class StopSignal:
    """Set by SIGTERM, SIGUSR1 (a scheduler's warning), SIGHUP or Ctrl-C: the run saves after its step and leaves.

    at_once: leave on the spot, by SystemExit(0), for as long as it is true: a single process that has not begun has
    nothing to save and nobody to tell. A second Ctrl-C never waits.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received: str | None = None
        self.at_once = at_once
        for number in stop_signals():
            signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())  # launch.start holds them back until here

    def _receive(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        if self.at_once:
            print_error(STOPPED_EARLY, below_bar=True)
            raise SystemExit(0)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a run to stop; under nohup SIGHUP is none of them."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and what to do.

    on_all_ranks: whether the others stop for the same reason, so that rank 0 alone need speak.
    """

    def __init__(self, message: str, on_all_ranks: bool = True):
        super().__init__(message)
        self.on_all_ranks = on_all_ranks


def stopping_on_bad_data(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches; too many unreadable images on this rank become TrainingStopped."""
    try:
        yield from loader
    except DatasetError as error:
        raise TrainingStopped(str(error), on_all_ranks=False) from None


def not_finite(step: int, what: object, last_saved: object) -> TrainingStopped:
    good = last_saved or "there is none yet"
    mend = "start anew, in another run.directory, with a lower optimizer.base_lr"
    return TrainingStopped(f"step {step}: {what}; last good checkpoint: {good}; {mend}")
