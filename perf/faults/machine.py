"""Faults of a run as users start it, by `launch.start` on this machine: each kind of its processes is killed, a process
hangs, memory and temporary files run out, and signals come while a step takes longer than a node may be silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from config.recipe import ROOT
from perf.faults.disks import fill, mount
from perf.faults.fault import SAME, Fault, Inject
from perf.faults.needs import memory_group
from perf.faults.place import LONGEST, Ended, Place, Unexpected, losses
from perf.faults.programs import Program

KIND = "a run of launch.start"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
START, SUPERVISOR, LAUNCHER = "launch.start", "launch.node", "launch.ranks"
DIED = r"swave: rank {} on .* died: killed"


class Launched:
    """`python -m launch.start` with two processes on this machine."""

    def __init__(
        self,
        place: Place,
        *settings: str,
        variables: dict[str, str] | None = None,
        group: Path | None = None,
        options: Sequence[str] = ("--processes", "2"),
    ) -> None:
        """group: the cgroup to start it in. options: of launch.start."""
        self.place, self.log = place, place.folder / "output-launched"
        self.variables = os.environ | ENVIRONMENT | (variables or {})
        words = ["-m", "launch.start", *options, *place.train(*settings)[1:]]
        self.process = self.start([sys.executable, *words], f"echo $$ > {group}/cgroup.procs" if group else ":")

    def start(self, command: list[str], first: str) -> subprocess.Popen[bytes]:
        """Start a command after the shell has done `first`; its output is the run's."""
        with self.log.open("a") as output:
            return subprocess.Popen(
                ["sh", "-c", f'{first}; exec "$@"', "sh", *command], cwd=ROOT, env=self.variables,
                stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def steps(self, count: int) -> None:
        """Wait until so many losses are logged."""
        end = time.monotonic() + LONGEST
        while len(losses(self.place.run)) < count:
            if self.process.poll() is not None or time.monotonic() > end:
                tail = " ".join(self.log.read_text()[-600:].split())
                self.finish(1)
                raise Unexpected(f"no step {count}: {tail}")
            time.sleep(0.05)

    def of_kind(self, word: str) -> list[int]:
        """Process ids of the run whose command has this word, without the ranks, which the launcher forks."""
        return [pid for pid, name, command in self.left() if word in command and not name.startswith("rank ")]

    def rank(self, number: int) -> int:
        """The process id of a rank."""
        return next(pid for pid, name, _ in self.left() if name == f"rank {number}")

    def left(self) -> list[tuple[int, str, list[str]]]:
        """All processes of the run: id, name, command."""
        import psutil

        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = process.cmdline()
                if any(str(self.place.run) in word for word in command):
                    found.append((process.pid, process.name(), command))
        return found

    def finish(self, longest: float = LONGEST) -> Ended:
        """Wait for the end of the run and of all its processes; those that are left after 30 seconds are a fault."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(longest)
        code, end = self.process.poll(), time.monotonic() + 30
        while code is not None and self.left() and time.monotonic() < end:
            time.sleep(0.1)
        left = self.left()
        for pid, _, _ in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        output = self.log.read_text(errors="replace")
        return Ended(None if left else code, output + "".join(f"\nleft behind: {command}" for *_, command in left))


def launched(act: Callable[[Launched], None], *settings: str, step: int = 5) -> Inject:
    """An injection: after a step of the run, `act` breaks something."""

    def inject(place: Place, program: Program) -> Ended:
        run = Launched(place, *settings)
        run.steps(step)
        act(run)
        return run.finish()

    return inject


def kill_one(word: str) -> Callable[[Launched], None]:
    """Kill the processes of one kind."""

    def act(run: Launched) -> None:
        for pid in run.of_kind(word):
            os.kill(pid, signal.SIGKILL)

    return act


def kill_rank(number: int) -> Callable[[Launched], None]:
    return lambda run: os.kill(run.rank(number), signal.SIGKILL)


def stop_rank(run: Launched) -> None:
    """Rank 1 hangs for good."""
    os.kill(run.rank(1), signal.SIGSTOP)


def signal_in_long_step(number: int, seconds: float) -> Callable[[Launched], None]:
    """The whole run is asked to stop while rank 1 makes a step of so many seconds."""

    def act(run: Launched) -> None:
        slow = run.rank(1)
        os.kill(slow, signal.SIGSTOP)
        run.process.send_signal(number)
        time.sleep(seconds)
        os.kill(slow, signal.SIGCONT)

    return act


def scanned_in_vain(place: Place, program: Program) -> Ended:
    """SIGTERM as soon as the program runs, long before its processes are there."""
    run = Launched(place)
    end = time.monotonic() + LONGEST
    while not run.of_kind(SUPERVISOR) and time.monotonic() < end:
        time.sleep(0.02)
    run.process.send_signal(signal.SIGTERM)
    return run.finish()


def beside_another(place: Place, program: Program) -> Ended:
    """`launch.start` while another run has the directory; that one then goes on to its end."""
    first = place.stop_at(program.arguments(place), "model.objective:Objective.loss", 6)
    second = Launched(place).finish()
    first.go()
    ended = first.end()
    return Ended(second.code if ended.code == 0 else ended.code, second.output + ended.output)


def full_temporary_folder(place: Place, program: Program) -> Ended:
    """The directory for temporary files becomes full in the run."""
    folder = place.folder / "temporary"
    mount(place, folder, "8m")
    run = Launched(place, variables={"TMPDIR": str(folder)})
    run.steps(3)
    fill(place, folder)
    return run.finish()


def out_of_memory(place: Place, program: Program) -> Ended:
    """Another process in the run's cgroup takes more than its limit leaves, and the kernel kills one of the others."""
    parent = memory_group()
    assert parent is not None
    group = parent / "swave-faults"
    group.mkdir(exist_ok=True)
    place.after.callback(group.rmdir)
    old = parent.name == "memory"
    limit = group / ("memory.limit_in_bytes" if old else "memory.max")
    run = Launched(place, group=group)
    run.steps(3)
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = int(stat["total_rss" if old else "anon"])
    limit.write_text(str(used + (300 << 20)))
    process = run.start(
        [sys.executable, "-c", f"import time; x = b'x' * {400 << 20}; time.sleep(60)"],
        f"echo -1000 > /proc/self/oom_score_adj; echo $$ > {group}/cgroup.procs",
    )
    ended = run.finish()
    process.kill()
    process.wait()
    return ended


def faults() -> list[Fault]:
    gone = "swave: .*(the launcher ended before its processes|died: |the connection to it ended)"
    return [
        Fault(KIND, "kill -9 of launch.start", launched(kill_one(START)), -signal.SIGKILL, "", SAME, 2),
        Fault(KIND, "kill -9 of launch.node", launched(kill_one(SUPERVISOR)), 1, "swave: .*", SAME, 2),
        Fault(KIND, "kill -9 of the deepspeed launcher", launched(kill_one(LAUNCHER)), 1, gone, SAME, 2),
        Fault(KIND, "kill -9 of rank 0", launched(kill_rank(0)), 1, DIED.format(0), SAME, 2),
        Fault(KIND, "kill -9 of rank 1", launched(kill_rank(1)), 1, DIED.format(1), SAME, 2),
        Fault(KIND, "rank 1 hangs for longer than launch.timeout", launched(stop_rank, "launch.timeout=6"), 1,
              "swave: rank 0 on .* died: ", SAME, 2),
        Fault(KIND, "SIGTERM in a step of 20 seconds", launched(signal_in_long_step(signal.SIGTERM, 20)), 0,
              "stopped by a signal, saved", SAME, 2),
        Fault(KIND, "SIGUSR1 in a step of 20 seconds", launched(signal_in_long_step(signal.SIGUSR1, 20)), 0,
              "stopped by a signal, saved", SAME, 2),
        Fault(KIND, "SIGTERM before its processes are there", scanned_in_vain, 0,
              "stopped by a signal before the first step", SAME, 2),
        Fault(KIND, "in the directory of another run", beside_another, 2,
              "swave: run.directory=.*another run is writing it", "ended", 2),
        Fault(KIND, "a full TMPDIR", full_temporary_folder, 0, "k-NN accuracy", "ended", 2, needs="root"),
        Fault(KIND, "out of memory (cgroup)", out_of_memory, 1, "swave: rank . on .* died: killed", SAME, 2,
              needs="memory group"),
    ]  # fmt: skip
