"""Watches all nodes of a run from the machine that started it: forwards signals, and ends all nodes once one fails."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config.recipe import ROOT
from training.stopping import stop_signals

GRACE = 5.0  # seconds between the first failure and SIGABRT to all nodes, beyond launch.node's own grace period
PING = 4.0  # seconds between PINGs to remote nodes; a node ends itself after launch.node.SILENCE without one
SILENCE = 14.0  # seconds without an answer after which a node counts as lost,
UNANSWERED = 3  # if it left so many PINGs without an answer: if this program was held up, it did not ask
SSH_FAILED = 255  # ssh's own exit code, as when the connection breaks
LAST = 8.0  # seconds from SIGABRT until the command of a node that still runs is killed


@dataclass
class Outcome:
    """How a run ended.

    code: 0, or the first nonzero exit code of a node. died: a line that says who died first and why, or "". step: the
    last step that a process is known to have finished, 0 for none. ended: how process 0 says that it ended ("done",
    "saved", ...; "" if it did not say). asked: whether a signal asked the run to end. stacks: files with stacks.
    """

    code: int = 0
    died: str = ""
    step: int = 0
    ended: str = ""
    asked: bool = False
    stacks: list[str] = field(default_factory=list)


def supervise(
    commands: Sequence[Sequence[str]], hosts: Sequence[str], environment: Mapping[str, str], remote: bool = True
) -> Outcome:
    """Run every node's command until all have ended. hosts: their names, for messages. remote: whether a connection can
    break unnoticed, so that nodes and this program must hear of each other all the time.

    Each node reads orders from its standard input and ends when that closes, as it does when this program ends.
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
    answered_at: dict[int, float] = {}  # node number -> time of its last answer
    asked_at: deque[float] = deque(maxlen=UNANSWERED)  # times of the last PINGs
    readers = [threading.Thread(target=read_reports, args=(node, reports, answered_at)) for node in nodes]
    for reader in readers:
        reader.start()
    outcome, abort_at, ping_at, interrupted = Outcome(), float("inf"), 0.0, False
    lost: list[int] = []  # numbers of nodes that do not answer
    killed: list[int] = []  # indices of commands that had to be killed
    while any(node.poll() is None for node in nodes):
        wait = min(PING, max(0.1, abort_at - time.monotonic()))
        received = signal.sigtimedwait([*signals, signal.SIGCHLD], wait)
        if received is not None and received.si_signo in signals:
            again = interrupted and received.si_signo == signal.SIGINT
            send_order(nodes, "SIGKILL" if again else "SIGUSR1" if received.si_signo == signal.SIGUSR1 else "SIGTERM")
            interrupted = interrupted or received.si_signo == signal.SIGINT
            outcome.asked = True
        elif remote and time.monotonic() >= ping_at:
            asked_at.append(time.monotonic())
            send_order(nodes, "PING")
            ping_at = time.monotonic() + PING
        outcome.code = outcome.code or first_code(nodes)
        lost = lost or (silent_nodes(answered_at, asked_at, reports) if remote else [])
        # The single command of srun lives as long as any of its nodes and does not notice the loss of one.
        failed = outcome.code or lost or any(report["died"] for report in reports)
        if failed and abort_at == float("inf"):
            abort_at = time.monotonic() + GRACE
        if time.monotonic() > abort_at + LAST:
            killed = killed or [index for index, node in enumerate(nodes) if node.poll() is None]
            for node in nodes:
                node.kill()
        elif time.monotonic() > abort_at:
            send_order(nodes, "SIGABRT")
    for reader in readers:
        reader.join()
    outcome.code = outcome.code or first_code(nodes)  # of those that ended at once
    for report in reports:
        outcome.step = max(outcome.step, report["step"])
        outcome.ended = outcome.ended or report["ended"]
        outcome.stacks += report["stacks"]
    outcome.died = first_death([death for report in reports for death in report["died"]])
    if lost:
        outcome.code = outcome.code or 1
        outcome.died = f"{hosts[lost[0]]}: no answer for {SILENCE:g} seconds"
    else:
        outcome.died = lost_connection(nodes, hosts, reports, killed) or outcome.died
    return outcome


def first_code(nodes: Sequence[subprocess.Popen[str]]) -> int:
    """The exit code of the first node that has ended with one other than 0; 1 for a signal or a broken connection."""
    code = next((node.returncode for node in nodes if node.poll()), 0)
    return code if 0 <= code < SSH_FAILED else 1


def lost_connection(
    nodes: Sequence[subprocess.Popen[str]], hosts: Sequence[str], reports: Sequence[Mapping[str, Any]],
    killed: Sequence[int],
) -> str:  # fmt: skip
    """A line about the first node that ended without a report because its connection broke or its supervisor was
    killed; "" if there is none. It caused the errors that the other nodes report.

    srun's single command is node 0 here; srun itself prints which node it lost.
    """
    reported = {report["node"] for report in reports}
    for index, node in enumerate(nodes):
        silent = index not in reported and index not in killed
        if silent and node.returncode in (SSH_FAILED, -signal.SIGKILL, -signal.SIGTERM):
            return f"{hosts[index]}: the connection to it ended (exit code {node.returncode})"
    return ""


def first_death(died: Sequence[Mapping[str, Any]]) -> str:
    """A line that says which rank died first and why; "" if none died.

    A rank that left no word (time 0) comes first: its death caused the errors of the others.
    """
    if not died:
        return ""
    first = min(died, key=lambda report: report["time"])
    who = f"rank {first['rank']} on {first['host']} died" if first["rank"] >= 0 else first["host"]
    return f"{who}: {first['error']}"


def send_order(nodes: Sequence[subprocess.Popen[str]], order: str) -> None:
    """Write an order (a signal's name or PING) to every node that still runs."""
    for node in nodes:
        assert node.stdin is not None
        if node.poll() is None:
            try:
                node.stdin.write(order + "\n")
                node.stdin.flush()
            except BrokenPipeError:  # it has just ended
                continue


def silent_nodes(
    answered_at: Mapping[int, float], asked_at: Sequence[float], reports: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Numbers of the nodes that answered before, have not reported their end, left all PINGs of `asked_at` without an
    answer, UNANSWERED in number, and are silent for SILENCE seconds."""
    ended = {report["node"] for report in reports}
    silent_at = min(time.monotonic() - SILENCE, asked_at[0] if len(asked_at) == UNANSWERED else -float("inf"))
    return [node for node, at in sorted(answered_at.items()) if node not in ended and at < silent_at]


def read_reports(node: subprocess.Popen[str], reports: list[dict[str, Any]], answered_at: dict[int, float]) -> None:
    """Read what a node (with srun: all nodes) prints until it ends: its report, and its answers to PINGs."""
    assert node.stdout is not None
    for line in node.stdout:
        try:
            message = json.loads(line)
            if {"died", "step", "ended", "stacks", "node"} <= message.keys():
                reports.append(message)
            elif "here" in message:
                answered_at[int(message["here"])] = time.monotonic()
        except (ValueError, TypeError, AttributeError):  # other output of the node
            continue
