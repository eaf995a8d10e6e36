"""Signals and kills of training processes at every phase of a run, and slow, stopped and continued ones."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from functools import partial

from perf.faults import points
from perf.faults.fault import ENDED, SAME, Fault, Inject, broken
from perf.faults.place import Ended, Place, Start
from perf.faults.programs import Program

LOSS, SAVE = "model.objective:Objective.loss", "training.checkpoint.save_load"
KNN = "evaluation.classifiers.knn:backbone_knn"
# Phase, point and call at which it is met, and how a run that is asked to stop there ends.
SAVED, EARLY, DONE = r"stopped by a signal, saved", r"stopped by a signal before the first step", r"k-NN accuracy"
PHASES: Sequence[tuple[str, str, int, str]] = (
    ("the scan of the images", "pipeline.dataset.open:scan_folder", 1, EARLY),
    ("the start", "training.build:starting_network", 1, EARLY),
    ("the start of the engine", "training.deepspeed_engine:build_engine", 1, EARLY),
    ("the first step", LOSS, 1, SAVED),
    ("a step", LOSS, 8, SAVED),
    ("saving, before a rank's file", f"{SAVE}:save_file", 2, SAVED),
    ("saving, before the manifest", f"{SAVE}:_size", 2, SAVED),
    ("saving, before `latest`", f"{SAVE}:write_atomically", 2, SAVED),
    ("the end of an epoch", "pipeline.loader:Loader.account", 1, SAVED),
    ("the last save", "training.run_state:RunState.save", 14, DONE),
    ("the k-NN of the untrained network", "evaluation.classifiers.knn:untrained_knn", 1, DONE),
    ("the last k-NN", KNN, 1, DONE),
    ("shutting down", "training.run_directory:Journal.close", 1, DONE),
)
Act = Callable[[Place, Start], None]
KILL, SIGNALS = "kill -9 of a training process", "signals"


def sent(*numbers: int, ranks: Sequence[int] | None = None, after: float = 0.0) -> Act:
    """Send signals to these ranks, with a quarter of a second between them, and wait `after` seconds."""

    def act(place: Place, started: Start) -> None:
        for number in numbers:
            started.send(number, ranks)
            time.sleep(0.25)
        time.sleep(after)

    return act


def killed(point: str, call: int, rank: int = 0, others: bool = True) -> Inject:
    """An injection: SIGKILL to rank `rank` at the point; to the others a moment later, as a supervisor does."""

    def inject(place: Place, program: Program) -> Ended:
        started = place.stop_at(program.arguments(place), point, call, rank=rank)
        started.send(signal.SIGKILL, [rank])
        time.sleep(0.05)
        if others:
            started.kill()
        return started.end()

    return inject


def slowed(place: Place, program: Program) -> Ended:
    prepare = partial(points.slow_steps, 0.3, 1)  # a step of the tiny run takes 0.03 seconds
    return place.start(program.arguments(place), prepare=prepare).end()


def halted(seconds: float) -> Inject:
    """Stop rank 1 (SIGSTOP) at a step and continue it (SIGCONT)."""

    def act(place: Place, started: Start) -> None:
        started.go()
        started.send(signal.SIGSTOP, [1])
        time.sleep(seconds)
        started.send(signal.SIGCONT, [1])

    return broken(LOSS, 6, act)


def faults() -> list[Fault]:
    rows = []
    for phase, point, call, says in PHASES:
        ranks = 2 if phase in ("the first step", "a step", "saving, before a rank's file") else 1
        short = phase == "saving, before the manifest"
        then = ENDED if says == DONE else SAME
        rows.append(Fault(KILL, f"in {phase}", killed(point, call), -signal.SIGKILL, "", ranks=ranks, short=short))
        for number in (signal.SIGTERM, signal.SIGUSR1):
            inject = broken(point, call, sent(number))
            rows.append(Fault(SIGNALS, f"{number.name} in {phase}", inject, 0, says, then, ranks))
    step, save = (LOSS, 8), (f"{SAVE}:save_file", 2)
    rows += [
        Fault(SIGNALS, "SIGTERM twice in a step", broken(*step, sent(15, 15)), 0, SAVED),
        Fault(SIGNALS, "SIGTERM twice in a save", broken(*save, sent(15, 15)), 0, SAVED, ranks=2),
        Fault(SIGNALS, "SIGUSR1, then SIGTERM in a save", broken(*save, sent(10, 15)), 0, SAVED, ranks=2),
        Fault(SIGNALS, "SIGINT in a step", broken(*step, sent(2)), 0, SAVED),
        Fault(SIGNALS, "SIGINT twice in a step", broken(*step, sent(2, 2)), 130, r"swave: .*Ctrl-C"),
        Fault(SIGNALS, "SIGINT twice in a save", broken(*save, sent(2, 2)), 130, r"swave: .*Ctrl-C"),
        Fault(SIGNALS, "SIGHUP in a step", broken(*step, sent(1)), 0, SAVED),
        Fault(SIGNALS, "SIGTERM in a k-NN between two epochs",
              broken(KNN, 1, sent(15), settings=["evaluation.every=1"]), 0, SAVED),
        Fault(SIGNALS, "SIGTERM in a step of 60 seconds",
              broken(*step, sent(15, after=60)), 0, SAVED, ranks=2),
        Fault(SIGNALS, "SIGTERM to one of two processes", broken(*step, sent(15, ranks=[1])), 0, SAVED, ranks=2),
        Fault(KILL, "in a save, rank 1", killed(f"{SAVE}:save_file", 2, rank=1), -9, "", ranks=2),
        Fault("slow and stopped processes", "every step of rank 1 takes 10 times as long", slowed, 0, DONE, ENDED, 2),
        Fault("slow and stopped processes", "rank 1 gets SIGSTOP, and SIGCONT after 5 seconds",
              halted(5), 0, DONE, ENDED, 2),
    ]  # fmt: skip
    return rows
