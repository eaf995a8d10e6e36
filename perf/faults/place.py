"""The folder in which a fault is tried, and programs of swave that are started there and stopped at a point.

Every fault finds the same path with the same contents, a copy of a snapshot, as tables and checkpoints name paths.

    images/       72 images of noise in two classes       tables/         the cache of their sample table
    tiny.yaml     the recipe of perf.kill_check           run/            the run's directory
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from perf.faults import points
from perf.forked import fork

LONGEST = 1200.0  # seconds until a program counts as hanging; beside much other work a start takes minutes
STOPPED_AT = 13  # step after which a snapshot's run was killed; its checkpoints are of every second step


class Unexpected(RuntimeError):
    """A program did not do what the fault needs; in one line."""


@dataclass
class Place:
    """folder: see above. ranks: training processes. repairs: undo the fault, before the same command is given again.
    after: what is undone when the place is left. other: makes and returns a folder with the files of another run."""

    folder: Path
    other: Callable[[], Path]
    ranks: int = 1
    repairs: ExitStack = field(default_factory=ExitStack)
    after: ExitStack = field(default_factory=ExitStack)
    starts: int = 0

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(
        self,
        arguments: Sequence[str],
        prepare: Callable[[int], None] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Start:
        """Start a program. prepare, variables: see perf.forked."""
        self.starts += 1
        log = self.folder / f"output-{self.starts}"
        log.write_text("")
        return Start(fork(arguments, log, self.ranks, prepare, variables), log, self.folder)

    def stop_at(self, arguments: Sequence[str], point: str, *calls: int, rank: int = 0) -> Start:
        """Start a program; returns once rank `rank` waits before the first of these calls of the point."""
        for name in ("reached", "go"):
            (self.folder / name).unlink(missing_ok=True)
        started = self.start(arguments, partial(points.pause, point, calls, self.folder, rank))
        started.wait_at(point)
        return started

    def train(self, *settings: str) -> list[str]:
        """The arguments of a run."""
        return ["train.py", str(self.folder / "tiny.yaml"), f"run.directory={self.run}", *settings]


@dataclass
class Start:
    """A program on forked processes."""

    processes: list[BaseProcess]
    log: Path
    folder: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool], problem: str, longest: float = LONGEST) -> None:
        """Raises Unexpected if the program ends or takes longer first."""
        end = time.monotonic() + longest
        while not condition():
            if any(process.exitcode is not None for process in self.processes) or time.monotonic() > end:
                tail = " ".join(self.output[-600:].split())
                self.kill()
                raise Unexpected(f"{problem}: {tail}")
            time.sleep(0.01)

    def wait_at(self, point: str) -> None:
        """Wait until a process waits at its point."""
        self.wait_until((self.folder / "reached").exists, f"{point} was not reached")

    def go(self) -> None:
        """Let the process that waits at its point go on."""
        (self.folder / "go").touch()

    def send(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to these ranks (None: to all)."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            with suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid or 0, number)

    def kill(self) -> None:
        """SIGKILL to all processes and those that they started."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()

    def end(self, longest: float = LONGEST) -> Ended:
        """Wait for the end; a program that hangs is killed, with the code None."""
        deadline = time.monotonic() + longest
        for process in self.processes:
            wait([process.sentinel], max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        hanging = None in codes
        self.kill()
        first = next((code for code in codes if code), 0)
        return Ended(None if hanging else first, self.output)


@dataclass(frozen=True)
class Ended:
    """code: the exit code, None if the program hung. output: all that it printed."""

    code: int | None
    output: str


# ---------------------------------------------------------------------------------------------- what runs leave
def losses(run: Path) -> dict[int, float]:
    """Step -> loss, from the lines of metrics.jsonl that can be read."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            found[int(entry["step"])] = float(entry["loss"])
    return found


def saved_steps(run: Path) -> list[int]:
    """Steps of the checkpoints that lie there, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def resumed_from(output: str) -> int | None:
    """The step from which a run went on, by its output."""
    match = re.search(r"resuming from .*\(step (\d+)\)", output)
    return int(match[1]) if match else None


def contents(path: Path) -> Any:
    """SHA-256 of every file at or below `path` by its name there; None if there is nothing."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return None
    return {str(file.relative_to(path)): contents(file) for file in sorted(path.rglob("*")) if file.is_file()}
