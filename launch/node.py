"""A node's part of a run: the deepspeed launcher on its processes, watched; started by `launch.start` on every node.

    python -m launch.node --rank I --processes 8,8,8,8 --master ADDRESS --port P RECIPE.yaml [key=value ...]

Standard input is the line to `launch.start`: SIGTERM or SIGUSR1 on it goes to all training processes here; SIGKILL, or
its end (whoever started us is gone), kills them, and so does a long silence of one that has spoken. When a process dies
the others have ten seconds, then, as on SIGABRT, they write their stacks and are killed. Nothing is left behind, not
even by a launcher that was killed itself. Exit code: the launcher's, 1 if a process died. Lines on standard output are
JSON: that we are here, when something is said to us; at the end which ranks died and why, the last step, what process 0
came to, and where stacks were written.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.machine import interface_to, launch_environment
from config.recipe import ROOT
from launch.nodes import Node, hostfile_text
from training.rank_status import LIFELINE, STACKS, WORDS, stacks_of, status_of, step_of
from training.stopping import stop_signals

GRACE = 10.0  # seconds that the others have once a process has died
SILENCE = 20.0  # seconds after which launch.start, which says something every four, is given up
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.node", description=__doc__.splitlines()[0])
    parser.add_argument("--rank", required=True, help="of this node; slurm: as SLURM_NODEID says")
    parser.add_argument("--processes", required=True, help="on each node: 8,8,8,8")
    parser.add_argument("--master", required=True, help="address of node 0")
    parser.add_argument("--port", type=int, required=True, help="where its process 0 listens")
    parser.add_argument("--directory", type=Path, help="the run's: stacks of processes that die go to stacks/ there")
    parser.add_argument("--program", default="train.py", help="what the processes run: a script here, or a module")
    parser.add_argument("settings", nargs="*", help="a recipe and key=value settings")
    options = parser.parse_args(arguments)
    rank = int(os.environ["SLURM_NODEID"] if options.rank == "slurm" else options.rank)
    counts = [int(count) for count in options.processes.split(",")]
    # Descendants whose parents die become our children: none is ever out of reach.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="swave-") as scratch:
        hostfile = Path(scratch) / "hosts"
        hostfile.write_text(hostfile_text([Node("", count) for count in counts]))
        program = [str(ROOT / options.program)] if options.program.endswith(".py") else ["--module", options.program]
        command = launch_command(hostfile, rank, options.master, options.port, [*program, *options.settings])
        if len(counts) > 1:  # what a host name resolves to may be another one, which the others do not reach
            interface = interface_to(options.master)
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
                os.environ.setdefault(name, str(interface))
        return Watch(command, Path(scratch), rank, counts[rank], program[-1], options.directory).run()


def launch_command(hostfile: Path, rank: int, master: str, port: int, program: list[str]) -> list[str]:
    """The deepspeed launcher's command line on the node number `rank`."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical", "--no_local_rank"),
        *("--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(rank)),
        *("--master_addr", master, "--master_port", str(port), *program),
    ]


class Watch:
    """The launcher of a node and the processes below it."""

    def __init__(
        self, command: list[str], scratch: Path, node: int, processes: int, program: str, directory: Path | None = None
    ) -> None:
        self.words, self.node, self.processes, self.program, self.directory = (
            scratch,
            node,
            processes,
            program,
            directory,
        )
        self.ranks: dict[int, int] = {}  # training processes that were seen: pid -> rank
        self.ends: dict[int, dict[str, Any]] = {}  # rank -> its last word, of those that ended badly
        self.deadline = self.silent_at = float("inf")
        self.signals = stop_signals()
        signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)  # below us they wait for `training.stopping.StopSignal`
        environment = launch_environment(processes) | {WORDS: str(scratch)}
        os.mkfifo(scratch / LIFELINE)
        os.open(scratch / LIFELINE, os.O_RDWR | os.O_CLOEXEC)  # closed by our end, however it comes
        self.launcher = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
        )
        os.set_blocking(0, False)

    def run(self) -> int:
        """Until the launcher has ended; what is left below it then is killed. The last line says how it went."""
        wanted: int | None = None
        told: set[int] = set()
        stacks: list[str] = []
        noticed = time.time()
        try:
            while self.launcher.poll() is None:
                order = self._order()
                if order is not None:
                    wanted = order
                    told.clear()
                alive = self._look()
                if time.monotonic() > min(self.deadline, self.silent_at):
                    wanted = signal.SIGABRT
                if wanted == signal.SIGABRT:
                    self._ask_for_stacks(alive)
                if wanted in (signal.SIGKILL, signal.SIGABRT):
                    break
                for process in alive if wanted is not None else []:
                    if process.pid not in told:
                        told.add(process.pid)
                        process.send_signal(signal.SIGUSR1 if wanted == signal.SIGUSR1 else signal.SIGTERM)
            noticed = time.time()  # before we kill what is left, and with it those that wait for it elsewhere
            self._look()
            if self.ends or wanted == signal.SIGABRT:
                stacks = self._keep_stacks()
        finally:
            self._kill_all()
        code = self.launcher.returncode
        well = sum(status_of(self.words, pid) is not None for pid in self.ranks)
        if code <= 0 and well < self.processes and wanted not in (signal.SIGKILL, signal.SIGABRT) and not self.ends:
            error = f"the launcher ended before its processes: {well} of {self.processes} came to their end"
            self.ends[-1] = {"error": error, "time": noticed}
        died = [
            {"rank": rank, "host": socket.gethostname(), "error": word["error"], "time": word["time"]}
            for rank, word in self.ends.items()
        ]
        first = [word for pid, rank in self.ranks.items() if rank == 0 and (word := status_of(self.words, pid))]
        report = {
            "node": self.node,
            "died": died,
            "step": max((step_of(self.words, pid) for pid in self.ranks), default=0),
            "ended": first[0]["ended"] if first else "",
            "stacks": stacks,
        }
        say(report)
        return 1 if code < 0 or died else code

    def _order(self) -> int | None:
        """What we are asked to do, by a signal or by launch.start; None after a fifth of a second without a wish."""
        received = signal.sigtimedwait(self.signals, 0.2)
        if received is not None:
            return int(received.si_signo)
        words = words_on(0)
        if words is None:
            return signal.SIGKILL
        if words:
            self.silent_at = time.monotonic() + SILENCE
            say({"here": self.node})
        orders = [word for word in words if word != "PING"]
        return signal.Signals[orders[-1]] if orders else None

    def _ask_for_stacks(self, alive: list[Any]) -> None:
        import psutil

        for process in alive:
            with suppress(psutil.Error):  # it has just ended
                process.send_signal(STACKS)
        time.sleep(0.5)

    def _keep_stacks(self) -> list[str]:
        """Copy what the processes wrote of their stacks into the run's directory; the files' names."""
        found = []
        for pid, rank in self.ranks.items():
            text = stacks_of(self.words, pid)
            if text and self.directory is not None:
                path = self.directory / "stacks" / f"rank-{rank}.txt"
                with suppress(OSError):  # nothing more can be done where the directory cannot be written
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(f"rank {rank} on {socket.gethostname()}, {time.ctime()}\n\n{text}")
                    found.append(str(path))
        return found

    def _look(self) -> list[Any]:
        """The training processes that live. Of those that have gone the ones that ended badly are noted."""
        import psutil

        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE and self.program in process.cmdline():
                    rank = int(process.environ().get("RANK", -1))
                    # The first of a rank is it; others are its own children, such as a compiler's.
                    if process.pid in self.ranks or (rank >= 0 and rank not in self.ranks.values()):
                        self.ranks[process.pid] = rank
                        found.append(process)
            except psutil.Error:  # ended in the meantime
                continue
        living = {process.pid for process in found}
        for pid, rank in self.ranks.items():
            if pid not in living and rank not in self.ends:
                word = status_of(self.words, pid) or {
                    "code": 1,
                    "error": "killed, or crashed without a word",
                    "time": 0.0,
                }
                if word["code"]:
                    self.deadline = min(self.deadline, time.monotonic() + GRACE)
                if word["error"]:
                    self.ends[rank] = word
        return found

    def _kill_all(self) -> None:
        """Every process below us, again until there is none."""
        import psutil

        while self.launcher.poll() is None or psutil.Process().children():
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
            if self.launcher.poll() is not None:  # what it left has become our child
                with suppress(ChildProcessError):
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass


def say(what: dict[str, Any]) -> None:
    """A line of JSON to launch.start, if it is still there."""
    with suppress(BrokenPipeError):
        os.write(1, f"{json.dumps(what)}\n".encode())


def words_on(descriptor: int) -> list[str] | None:
    """The words that have come, [] if none has; None at the end. On a terminal or /dev/null nobody speaks to us."""
    if stat.S_ISCHR(os.fstat(descriptor).st_mode):
        return []
    try:
        text = os.read(descriptor, 4096)
    except BlockingIOError:
        return []
    return text.decode().split() if text else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
