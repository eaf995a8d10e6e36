"""Starts the deepspeed launcher of one node and watches its processes; `launch.start` runs this on each node.

    python -m launch.node --rank I --processes 8,8,8,8 --master ADDRESS --port P RECIPE.yaml [key=value ...]

Orders arrive on standard input. SIGTERM or SIGUSR1 is passed on to all training processes here. SIGKILL, or the end of
standard input (the program that started this one is gone), kills them, and so does silence after a first PING. When a
process dies, the others have ten seconds; then, as on SIGABRT, they write their stacks and are killed. No process is
left behind, even if the launcher itself is killed. Exit code: the launcher's, 2 if a process ended by a user's
mistake, or 1 if one died.

Lines on standard output are JSON: {"here": I} answers a PING; the last line reports which ranks died and why, the
last step, how process 0 ended, and the files with stacks.
"""

from __future__ import annotations

import base64
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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.cli import EXIT_MISTAKE, Parser, exit_on_mistake
from common.machine import devices_of_processes, interface_to, launch_environment, visible_gpus
from config.recipe import ROOT, ConfigError
from training.rank_status import LIFELINE, STACKS, WORDS, ranks_of, stacks_of, status_of, step_of
from training.stopping import stop_signals

GRACE = 10.0  # seconds that the other processes have once one has died
SILENCE = 20.0  # seconds without a PING (launch.supervise sends one every four) after which this node gives up
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    parser = Parser(prog="python -m launch.node", description=__doc__.splitlines()[0])
    parser.add_argument("--rank", required=True, help="number of this node; slurm: read it from SLURM_NODEID")
    parser.add_argument("--processes", required=True, help="on each node: 8,8,8,8")
    parser.add_argument("--master", required=True, help="address of node 0")
    parser.add_argument("--port", type=int, required=True, help="on which process 0 listens")
    parser.add_argument("--directory", type=Path, help="the run's; stacks of processes that die go to stacks/ in it")
    parser.add_argument("--program", default="train.py", help="what the processes run: a script in ROOT, or a module")
    parser.add_argument("settings", nargs="*", help="a recipe and key=value settings")
    options = parser.parse_args(arguments)
    rank = int(os.environ["SLURM_NODEID"] if options.rank == "slurm" else options.rank)
    counts = [int(count) for count in options.processes.split(",")]
    with exit_on_mistake():
        check_devices(counts[rank], visible_gpus())
    # Orphaned descendants become children of this process, so that it can always reach and end them.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="swave-") as scratch:
        program = [str(ROOT / options.program)] if options.program.endswith(".py") else ["--module", options.program]
        command = launch_command(counts, rank, options.master, options.port, [*program, *options.settings])
        if len(counts) > 1:  # the interface of the address that the host name resolves to may not reach other nodes
            interface = interface_to(options.master)
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
                os.environ.setdefault(name, str(interface))
        return Supervisor(command, Path(scratch), rank, counts[rank], options.directory).run()


def launch_command(counts: Sequence[int], rank: int, master: str, port: int, program: list[str]) -> list[str]:
    """The command line of deepspeed's launcher (`launch.ranks`) on the node number `rank`. counts: processes on each
    node.

    `deepspeed` itself would start the same launcher. It would import torch once more before, and it would replace the
    user's CUDA_VISIBLE_DEVICES by the first devices of the machine.
    """
    nodes = {f"node{index}": [str(device) for device in range(count)] for index, count in enumerate(counts)}
    nodes[f"node{rank}"] = devices_of_processes(counts[rank], os.environ)  # of other nodes only the number counts
    return [
        *(sys.executable, "-m", "launch.ranks", "--log_level", "critical", "--no_local_rank"),
        *("--world_info", base64.urlsafe_b64encode(json.dumps(nodes).encode()).decode(), "--node_rank", str(rank)),
        *("--master_addr", master, "--master_port", str(port), *program),
    ]


def check_devices(processes: int, gpus: int) -> None:
    """Raises ConfigError if a machine with GPUs lets its processes see fewer of them than there are processes."""
    if 0 < gpus < processes:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = f"{gpus} GPU{'s' if gpus > 1 else ''}"
        seen += "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen})"
        raise ConfigError(f"{processes} processes on a machine that shows {seen}; give GPUS={gpus}, or fewer slots")


class Supervisor:
    """Starts the launcher of a node and watches the training processes below it.

    command: the launcher's. scratch: folder in which the ranks leave their status (`training.rank_status`). node: its
    number. processes: how many ranks it has. directory: the run's, for stacks; None keeps no stacks.
    """

    def __init__(
        self, command: list[str], scratch: Path, node: int, processes: int, directory: Path | None = None
    ) -> None:
        self.scratch, self.node, self.processes, self.directory = scratch, node, processes, directory
        self.ranks: dict[int, int] = {}  # process id -> rank, of all training processes started so far
        self.failures: dict[int, dict[str, Any]] = {}  # rank -> its last word, of the ranks that failed
        self.deadline = self.silent_at = float("inf")
        self.signals = stop_signals()
        signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)  # children inherit this until StopSignal unblocks them
        environment = launch_environment(processes) | {WORDS: str(scratch)}
        os.mkfifo(scratch / LIFELINE)
        os.open(scratch / LIFELINE, os.O_RDWR | os.O_CLOEXEC)  # the kernel closes it however this process ends
        self.launcher = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
        )
        os.set_blocking(0, False)

    def run(self) -> int:
        """Watch until the launcher ends, kill all processes left below it, and print the report; the exit code."""
        order: int | None = None
        stacks: list[str] = []
        ended_at = time.time()
        try:
            order = self._watch()
            ended_at = time.time()  # before the kill, which makes the ranks on other nodes fail
            self._training_processes()
            if self.failures or order == signal.SIGABRT:
                stacks = self._save_stacks()
        finally:
            self._kill_all()
        code = self.launcher.returncode
        words = [word for pid in self.ranks if (word := status_of(self.scratch, pid)) is not None]
        if any(word["code"] == EXIT_MISTAKE for word in words):  # it is said; the others failed because of its end
            code, self.failures = EXIT_MISTAKE, {}
        finished = len(words)
        killed = order in (signal.SIGKILL, signal.SIGABRT)
        if code <= 0 and finished < self.processes and not killed and not self.failures:
            error = f"the launcher ended before its processes: {finished} of {self.processes} finished"
            self.failures[-1] = {"error": error, "time": ended_at}
        send(self._report(stacks))
        return 1 if code < 0 or self.failures else code

    def _watch(self) -> int | None:
        """Carry out orders and look after the processes until the launcher ends or must be killed; the last order."""
        order: int | None = None
        signaled: set[int] = set()  # process ids that have received the current order
        while self.launcher.poll() is None:
            new_order = self._next_order()
            if new_order is not None:
                order = new_order
                signaled.clear()
            alive = self._training_processes()
            if time.monotonic() > min(self.deadline, self.silent_at):
                order = signal.SIGABRT
            if order == signal.SIGABRT:
                self._request_stacks(alive)
            if order in (signal.SIGKILL, signal.SIGABRT):
                break
            for process in alive if order is not None else []:
                if process.pid not in signaled:
                    signaled.add(process.pid)
                    process.send_signal(signal.SIGUSR1 if order == signal.SIGUSR1 else signal.SIGTERM)
        return order

    def _next_order(self) -> int | None:
        """The next signal number to act on, from a signal or from standard input; None if 0.2 seconds bring none."""
        received = signal.sigtimedwait(self.signals, 0.2)
        if received is not None:
            return int(received.si_signo)
        words = read_words(0)
        if words is None:
            return signal.SIGKILL
        if "PING" in words:  # more will come; without remote nodes none ever do
            self.silent_at = time.monotonic() + SILENCE
            send({"here": self.node})
        orders = [word for word in words if word != "PING"]
        return signal.Signals[orders[-1]] if orders else None

    def _training_processes(self) -> list[Any]:
        """The training processes that are alive. Failures of those that have ended are recorded."""
        import psutil

        self.ranks = ranks_of(self.scratch)
        alive = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended since
                if process.pid in self.ranks and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        self._record_failures({process.pid for process in alive})
        return alive

    def _record_failures(self, alive: set[int]) -> None:
        """Note each rank that ended badly; its end starts the deadline of the others. alive: process ids."""
        for pid, rank in self.ranks.items():
            if pid not in alive and rank not in self.failures:
                word = status_of(self.scratch, pid) or {
                    "code": 1,
                    "error": "killed, or crashed without a word",
                    "time": 0.0,
                }
                if word["code"]:
                    self.deadline = min(self.deadline, time.monotonic() + GRACE)
                if word["error"]:
                    self.failures[rank] = word

    def _request_stacks(self, alive: list[Any]) -> None:
        """Make the processes write their stacks, and give them half a second for it."""
        import psutil

        for process in alive:
            with suppress(psutil.Error):  # it has just ended
                process.send_signal(STACKS)
        time.sleep(0.5)

    def _save_stacks(self) -> list[str]:
        """Copy the stacks that the processes wrote into the run's directory; the files' names."""
        saved = []
        for pid, rank in self.ranks.items():
            text = stacks_of(self.scratch, pid)
            if text and self.directory is not None:
                path = self.directory / "stacks" / f"rank-{rank}.txt"
                with suppress(OSError):  # the directory may not be writable; the run has failed already
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(f"rank {rank} on {socket.gethostname()}, {time.ctime()}\n\n{text}")
                    saved.append(str(path))
        return saved

    def _report(self, stacks: list[str]) -> dict[str, Any]:
        """The last line on standard output, which `launch.supervise` reads."""
        host = socket.gethostname()
        first = [word for pid, rank in self.ranks.items() if rank == 0 and (word := status_of(self.scratch, pid))]
        return {
            "node": self.node,
            "died": [
                {"rank": rank, "host": host, "error": word["error"], "time": word["time"]}
                for rank, word in self.failures.items()
            ],
            "step": max((step_of(self.scratch, pid) for pid in self.ranks), default=0),
            "ended": first[0]["ended"] if first else "",
            "stacks": stacks,
        }

    def _kill_all(self) -> None:
        """Kill every process below this one, until none is left."""
        import psutil

        while self.launcher.poll() is None or psutil.Process().children():
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
            if self.launcher.poll() is not None:  # its orphans are now children of this process
                with suppress(ChildProcessError):
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass


def send(message: dict[str, Any]) -> None:
    """Write a line of JSON to `launch.supervise`, if it still reads."""
    with suppress(BrokenPipeError):
        os.write(1, f"{json.dumps(message)}\n".encode())


def read_words(descriptor: int) -> list[str] | None:
    """The words that have arrived, [] if none have; None at the end of the stream. A terminal or /dev/null has none."""
    if stat.S_ISCHR(os.fstat(descriptor).st_mode):
        return []
    try:
        text = os.read(descriptor, 4096)
    except BlockingIOError:
        return []
    return text.decode().split() if text else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
