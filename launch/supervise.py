"""All nodes of a run from its start to its end, seen from where it was started: signals go to each, and the end of one
is the end of all."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config.recipe import ROOT
from training.stopping import stop_signals

GRACE = 5.0  # seconds that the other nodes have, beyond those that each gives its own processes, once one has failed
PING = 4.0  # seconds between words to the nodes, which end themselves after launch.node.SILENCE without any
SILENCE = 14.0  # seconds without an answer after which a node is given up
LAST = 8.0  # seconds after which the command of a node that does not end is killed


@dataclass
class Outcome:
    """How a run ended. code: 0, or the first exit code of a node that was not. died: a line for who died first and why.
    step: the last one that a process is known to have ended (0: none). ended: what process 0 says that it came to
    ("done", "saved", ...; "" if it did not say). asked: whether a signal asked for the end."""

    code: int = 0
    died: str = ""
    step: int = 0
    ended: str = ""
    asked: bool = False
    stacks: list[str] = field(default_factory=list)


def conduct(
    commands: Sequence[Sequence[str]], hosts: Sequence[str], environment: Mapping[str, str], far: bool = True
) -> Outcome:
    """Run every node's command until all have ended. hosts: their names, for messages. far: whether they may lose us
    without noticing, and so want to hear something all the time.

    Each node listens on its standard input: signals are passed on by it, and its end, when we are gone, ends the node.
    """
    signals = stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, [*signals, signal.SIGCHLD])
    nodes = [
        subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )
        for command in commands
    ]  # fmt: skip
    reports: list[dict[str, Any]] = []
    heard: dict[int, float] = {}  # number of a node -> when it last answered
    readers = [threading.Thread(target=collect, args=(node, reports, heard)) for node in nodes]
    for reader in readers:
        reader.start()
    outcome, kill_at, ping_at, interrupted, failed = Outcome(), float("inf"), 0.0, False, False
    lost: list[int] = []
    given_up: list[int] = []
    while any(node.poll() is None for node in nodes):
        wait = min(PING, max(0.1, kill_at - time.monotonic()))
        received = signal.sigtimedwait([*signals, signal.SIGCHLD], wait)
        if received is not None and received.si_signo in signals:
            again = interrupted and received.si_signo == signal.SIGINT
            tell(nodes, "SIGKILL" if again else "SIGUSR1" if received.si_signo == signal.SIGUSR1 else "SIGTERM")
            interrupted = interrupted or received.si_signo == signal.SIGINT
            outcome.asked = True
        elif far and time.monotonic() >= ping_at:
            tell(nodes, "PING")
            ping_at = time.monotonic() + PING
        for node in nodes:
            if node.poll() and not outcome.code:
                outcome.code = node.returncode if node.returncode > 0 else 1
        lost = lost or silent(heard, reports)
        # srun's one command lives as long as any of its nodes, and does not notice that one is gone.
        if not failed and (outcome.code or lost or any(report["died"] for report in reports)):
            failed, kill_at = True, time.monotonic() + GRACE
        if time.monotonic() > kill_at + LAST:
            given_up = given_up or [index for index, node in enumerate(nodes) if node.poll() is None]
            for node in nodes:
                node.kill()
        elif time.monotonic() > kill_at:
            tell(nodes, "SIGABRT")
    for reader in readers:
        reader.join()
    for report in reports:
        outcome.step = max(outcome.step, report["step"])
        outcome.ended = outcome.ended or report["ended"]
        outcome.stacks += report["stacks"]
    outcome.died = first_death([death for report in reports for death in report["died"]])
    if lost:
        outcome.code = outcome.code or 1
        outcome.died = f"{hosts[lost[0]]}: nothing was heard of it for {SILENCE:g} seconds"
    # One that ended by the loss of its connection or supervisor, without a word: others' errors are of its going. Of
    # srun's one command there is one name only; it says itself which node it lost.
    reported = {report["node"] for report in reports}
    for index, node in enumerate(nodes):
        unheard = index not in reported and index not in given_up
        if not lost and unheard and node.returncode in (255, -signal.SIGKILL, -signal.SIGTERM):
            outcome.died = f"{hosts[index]}: the connection to it ended (exit code {node.returncode})"
            break
    return outcome


def first_death(died: Sequence[Mapping[str, Any]]) -> str:
    """Who died first, and of what. One that was killed without a word goes before all (its time is 0): the others'
    errors are of its going."""
    if not died:
        return ""
    first = min(died, key=lambda report: report["time"])
    who = f"rank {first['rank']} on {first['host']} died" if first["rank"] >= 0 else first["host"]
    return f"{who}: {first['error']}"


def tell(nodes: Sequence[subprocess.Popen[str]], order: str) -> None:
    """Send an order to every node that lives."""
    for node in nodes:
        assert node.stdin is not None
        if node.poll() is None:
            try:
                node.stdin.write(order + "\n")
                node.stdin.flush()
            except BrokenPipeError:  # it has just ended
                continue


def silent(heard: Mapping[int, float], reports: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of the nodes that have answered once, have not reported their end, and have been silent for too long."""
    ended = {report["node"] for report in reports}
    return [n for n, at in sorted(heard.items()) if n not in ended and time.monotonic() - at > SILENCE]


def collect(node: subprocess.Popen[str], reports: list[dict[str, Any]], heard: dict[int, float]) -> None:
    """Take in what a node (srun: all of them) says of itself, as it comes, until it has ended: its report, and when it
    answers that it is there."""
    assert node.stdout is not None
    for line in node.stdout:
        try:
            said = json.loads(line)
            if {"died", "step", "ended", "stacks", "node"} <= said.keys():
                reports.append(said)
            elif "here" in said:
                heard[int(said["here"])] = time.monotonic()
        except (ValueError, TypeError, AttributeError):  # something else that was printed
            continue
