"""The progress bar of every wait that lasts longer than two seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

DELAY = 2.0  # seconds until a bar is shown
LOG_INTERVAL = 10.0  # seconds between the lines of a bar in a log file

Item = TypeVar("Item")

# By default tqdm locks between processes, with a named semaphore. A rank that is killed leaves it behind, and
# multiprocessing warns about it at the end of the run. Only one process shows bars, so a lock of threads is enough.
tqdm.set_lock(threading.RLock())


class Bar(tqdm):
    """A bar that first appears after DELAY seconds, even if no item is done by then."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(delay=DELAY, **settings)
        self.appearance = threading.Timer(DELAY, self._appear)
        self.appearance.daemon = True
        if not self.disable:
            self.appearance.start()

    def _appear(self) -> None:
        if not self.disable and self.last_print_t == self.start_t:  # neither closed nor shown meanwhile
            self.last_print_n, self.last_print_t = self.n, time.time()
            self.refresh()

    def close(self) -> None:
        if hasattr(self, "appearance"):
            self.appearance.cancel()
        super().close()


def progress_bar(total: int | None, what: str, unit: str, shown: bool = True) -> Any:
    """A bar with rate and ETA on stderr, for waits of over two seconds; in a log file a line every ten seconds.

    total: of `unit`s, None if unknown. shown: whether this process is the one that shows it (rank 0).
    """
    terminal = sys.stderr.isatty()
    interval, position = (0.1, None) if terminal else (LOG_INTERVAL, 0)  # a log has no lines to move between
    settings = {"disable": not shown, "mininterval": interval, "position": position}
    return Bar(total=total, desc=what, unit=unit, unit_scale=unit == "B", **settings)  # bytes as 30.9M


def in_main_process() -> bool:
    """Whether this process is rank 0 or the only one, for code that is not told which process shows its bar."""
    return os.environ.get("RANK", "0") == "0"


def counted(items: Iterable[Item], bar: Any, size: Any = len) -> Iterator[Item]:
    """The items, each counted on the bar with its size once the next one is asked for."""
    for item in items:
        yield item
        bar.update(size(item))
