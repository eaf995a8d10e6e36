"""The progress bar while numba compiles the kernel: half a minute, once for each kind of CPU and state of the code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core import event

from common.progress import in_main_process, progress_bar

HERE = Path(__file__).parent
PACKAGE = __name__.rpartition(".")[0]


@contextmanager
def compiling(folder: Path = HERE) -> Iterator[None]:
    """Count a kernel's functions that numba compiles in the block, on rank 0. Nothing is shown if they are cached.

    folder: of the kernel's sources.
    """
    sources = [path.read_text() for path in folder.glob("*.py")]
    total = sum(text.count("\n@njit") for text in sources) + 1  # the driver has no decorator
    with (
        progress_bar(total, "compiling the kernel for this CPU", "function", in_main_process()) as bar,
        event.install_listener("numba:compile", _Counter(bar, ".".join([PACKAGE, *folder.relative_to(HERE).parts]))),
    ):
        yield


class _Counter(event.Listener):
    """Counts each function once, also if numba compiles it for several types."""

    def __init__(self, bar: Any, package: str) -> None:
        self.bar, self.package, self.seen = bar, package, set[str]()

    def on_start(self, event: Any) -> None:
        """Nothing is counted yet."""

    def on_end(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        name = f"{function.__module__}.{function.__qualname__}"
        if name.startswith(self.package) and name not in self.seen:
            self.seen.add(name)
            self.bar.update()
