"""What can go wrong with a request, and how often it is tried again."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from pipeline.dataset.table import DatasetError
from pipeline.remote.address import shown

Result = TypeVar("Result")


class Missing(OSError):
    """The object is not there."""


class Changed(DatasetError):
    """The object is not the one that was listed."""


class Temporary(OSError):
    """Another try may succeed: a timeout, a reset, a cut answer, an error of the server, throttling.

    wait: seconds for which the server asks, 0 without.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Patience(NamedTuple):
    """Seconds. timeout: of a connection and of each wait for bytes; first, most: of a pause between tries, which
    doubles; budget: of all tries of a request together."""

    timeout: float = 30.0
    first: float = 0.25
    most: float = 20.0
    budget: float = 300.0


PATIENCE = Patience()
UNSTOPPED = threading.Event()
GRACE = 5.0  # seconds of further tries after a stop signal: a batch that is nearly there lets the ranks save together
_last_try = math.inf  # on the clock of `time.monotonic`


def changed(address: str) -> Changed:
    return Changed(f"{shown(address)}: the object changed while it was in use; start again, and it is fetched again")


def end_soon() -> None:
    """Let this process try again for GRACE seconds at most, from now on; safe to call in a signal handler."""
    global _last_try
    _last_try = min(_last_try, time.monotonic() + GRACE)


def retrying(
    action: Callable[[], Result], address: str, patience: Patience, stop: threading.Event = UNSTOPPED
) -> Result:
    """The result of `action`, which is tried again after a `Temporary` fault, with exponential pauses and jitter.

    stop: once it is set, the result is no longer needed, and there is no other try.
    Raises DatasetError, one line that names the object, when the budget is spent, or soon after `end_soon`.
    """
    begun, tries = time.monotonic(), 0
    while True:
        try:
            return action()
        except Temporary as fault:
            tries += 1
            pause = min(patience.most, patience.first * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
            pause = max(pause, fault.wait)
            spent = time.monotonic() - begun
            if spent + pause > patience.budget or time.monotonic() > _last_try or stop.is_set():
                problem = f"{shown(address)}: {fault}, in {tries} tries within {spent:.0f} s"
                raise DatasetError(f"{problem}; start again when the server answers") from None
        until = time.monotonic() + pause
        while (left := min(until, _last_try) - time.monotonic()) > 0 and not stop.wait(min(left, 0.5)):
            pass
