"""Runs programs in parallel, one on each core, and skips those that are done."""

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

from common.progress import progress_bar
from common.signals import signal_on_parents_death
from config.recipe import ROOT


@dataclass(frozen=True)
class Job:
    """A program to run. command: arguments of Python. done: a file that exists once the job is done. seconds: estimated
    time, for the progress bar."""

    name: str
    command: tuple[str, ...]
    done: Path
    seconds: float

    @property
    def log(self) -> Path:
        """The file for its output, next to the folder of `done`."""
        return self.done.parent.with_name(f"{self.done.parent.name}-{self.done.stem}.log")


def run_jobs(jobs: Sequence[Job], cores: Sequence[int], title: str) -> dict[str, float]:
    """Run the jobs that are not done, in order, each with one thread on its own core; returns the seconds of each one.

    title: of the progress bar. Raises RuntimeError, one line, if a job fails; the other jobs are then stopped, and the
    next call continues them.
    """
    waiting = [job for job in jobs if not job.done.exists()]
    free, taken = list(cores), {}
    running: dict[Job, tuple[subprocess.Popen[bytes], int, float]] = {}
    total, finished = sum(job.seconds for job in waiting) / len(cores), 0.0
    with progress_bar(round(total), title, "s", bool(waiting)) as bar:
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
    """Start the program on `core`, in a new session: a Ctrl-C reaches only this process, which then stops the jobs."""
    job.done.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *job.command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True, preexec_fn=partial(bind, core),
        )  # fmt: skip


def bind(core: int) -> None:
    """In the new process: stay on `core`, and get SIGTERM if the parent is killed."""
    os.sched_setaffinity(0, {core})
    signal_on_parents_death(signal.SIGTERM)


def check(job: Job, code: int) -> None:
    """Raises RuntimeError if the job has failed, or has ended before it was done."""
    if code or not job.done.exists():
        lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip()[:300] if lines else "no output"
        raise RuntimeError(f"{job.name} ended with code {code} before it was done: {last} (whole log: {job.log})")


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the processes to save and end; kill those that do not within 30 seconds."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
