"""Programs run side by side, one to a core; what is done is not run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.progress import progress_bar
from common.signals import signal_on_parents_death
from config.recipe import ROOT


@dataclass(frozen=True)
class Job:
    """command: arguments of Python. done: the file whose presence says that it is done. seconds: that it will take,
    for the bar. It logs to done's folder's name + .log."""

    name: str
    command: tuple[str, ...]
    done: Path
    seconds: float

    @property
    def log(self) -> Path:
        return self.done.parent.with_name(f"{self.done.parent.name}-{self.done.stem}.log")


def run_jobs(jobs: Sequence[Job], cores: Sequence[int], what: str, log: Any = None) -> dict[str, float]:
    """Run all that are not done, in order, each on one core by itself with one thread; seconds of each that ran.

    Raises RuntimeError, one line, when one fails; the others are ended then, and go on when this is called again.
    """
    waiting = [job for job in jobs if not job.done.exists()]
    free, taken = list(cores), {}
    running: dict[Job, tuple[subprocess.Popen[bytes], int, float]] = {}
    total, finished = sum(job.seconds for job in waiting) / len(cores), 0.0
    with progress_bar(round(total), what, "s", bool(waiting)) as bar:
        try:
            while waiting or running:
                while waiting and free:
                    job, core = waiting.pop(0), free.pop(0)
                    running[job] = (start(job, core), core, time.monotonic())
                time.sleep(0.05)
                for job, (process, core, began) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[job]
                    free.append(core)
                    taken[job.name] = time.monotonic() - began
                    finished += job.seconds
                    check(job, process.returncode)
                now = time.monotonic()
                under_way = sum(min(now - began, job.seconds) for job, (_, _, began) in running.items())
                bar.set_postfix_str(", ".join(job.name for job in running), refresh=False)
                bar.update(round((finished + under_way) / len(cores)) - bar.n)
        finally:
            end([process for process, _, _ in running.values()])
    return taken


def start(job: Job, core: int) -> subprocess.Popen[bytes]:
    """The program on that core, in a process group of its own: a Ctrl-C is ours to pass on."""
    job.done.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *job.command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True, preexec_fn=partial(alone, core),
        )  # fmt: skip


def alone(core: int) -> None:
    """In the new process: on that core only, and asked to end should we be killed."""
    os.sched_setaffinity(0, {core})
    signal_on_parents_death(signal.SIGTERM)


def check(job: Job, code: int) -> None:
    """Raises RuntimeError where it has failed, or was ended before it was done."""
    if code or not job.done.exists():
        said = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
        told = said[-1].strip()[:300] if said else "it said nothing"
        raise RuntimeError(f"{job.name} ended with code {code} before it was done: {told} (all of it: {job.log})")


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask them to save and end, and kill those that have not after 30 seconds."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
