"""The priority of threads that only compute, below that of a thread that feeds a GPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

NICE = 10  # for the loader of a GPU's training: added to the process's own


def computing_threads(count: int, name: str, nice: int) -> ThreadPoolExecutor:
    """Threads whose nice value is higher than the process's by `nice`, like that of the threads that they start: they
    leave a core at once to the training thread, which has to launch a GPU's work in time.

    For work without Python's lock: a training thread that waits for the lock would wait until its holder gets a core.
    """
    # On Linux nice is a property of a thread, not of a process, and a new thread inherits it.
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=os.nice, initargs=(nice,))
