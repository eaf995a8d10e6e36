"""Work on several processes of this machine, and what new processes import and find in their environment."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from common.cli import UserError
from common.signals import signal_on_parents_death


def in_processes(work: Any, tasks: Iterator[Any], workers: int, setting: str = "data.workers") -> Iterator[Any]:
    """`map(work, tasks)` in order, in fresh processes, with few tasks in flight; in this process for one worker.

    They end with this process, also if it is killed. setting: the user's name for `workers`. Raises UserError when one
    of the processes is killed.
    """
    if workers <= 1:
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(os.getpid(),))
    flying: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            with _without_main():
                flying.append(pool.submit(work, task))
            if len(flying) >= 4 * workers:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    except BrokenProcessPool:
        raise UserError(f"{setting}={workers}: a worker process was killed (out of memory?); take fewer") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """Kill this worker when its parent dies; else it would wait for tasks for ever, alongside the next run's workers.

    SIGINT is ignored, because Ctrl-C goes to all processes of a terminal and the parent ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal_on_parents_death(signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        os._exit(1)


def imported_by(source: str) -> list[str]:
    """The modules that a program's source imports, also inside its functions."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set `values` in `os.environ` during the block, for processes that start in it, and restore it afterwards."""
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        for name in values:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main script from processes that start meanwhile.

    Spawned processes run the parent's main script again, and `train.py` would import torch there for nothing. All of a
    pool's processes start at its first task, and they look for the script only while they start.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
