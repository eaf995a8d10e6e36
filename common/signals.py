"""Signals that end a program, and workers that end with their parent."""

from __future__ import annotations

import ctypes
import signal

ENDING = (signal.SIGINT, signal.SIGTERM)  # signals that end a program without state to save
PR_SET_PDEATHSIG = 1  # option of prctl(2): the signal to receive when the parent dies


class Stopped(KeyboardInterrupt):
    """Raised on a signal, with its number. A subclass, because Python ends by SIGINT, not with our exit code, when a
    KeyboardInterrupt itself passes through exec() of a text (as in an import of numba), even if we catch it."""


def signal_on_parents_death(number: signal.Signals) -> None:
    """The kernel sends this process the signal when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
