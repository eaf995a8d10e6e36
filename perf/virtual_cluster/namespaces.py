"""Network namespaces with names of ours: made, listed, emptied and removed by iproute2. Needs root."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
SPACES, FILES = Path("/run/netns"), Path("/etc/netns")  # where `ip netns` keeps names, and files it puts over /etc
OURS = re.compile(r"swave-(\d+)-(\d+)-")  # process, number of the subnet
PATIENCE = 20.0  # seconds until a host that does not start, or a process that does not end, is an error


def remove_left_over() -> None:
    """Remove the hosts of processes that live no more."""
    for space in _spaces():
        match = OURS.match(space)
        if match and not Path("/proc", match[1]).exists():
            remove(space)


def _spaces() -> set[str]:
    """Names in use, of namespaces and of folders for them."""
    return {path.name for parent in (SPACES, FILES) if parent.is_dir() for path in parent.iterdir()}


def claim() -> tuple[str, int]:
    """A namespace for the wire between the hosts, and the number of a subnet that no others use."""
    taken = {int(match[2]) for match in map(OURS.match, _spaces()) if match}
    free = sorted(set(range(256)) - taken)
    if not free:
        raise RuntimeError("256 clusters of hosts live at once")
    wire = f"swave-{os.getpid()}-{free[0]}-wire"
    ip("netns", "add", wire)
    return wire, free[0]


def remove(space: str) -> None:
    """Kill what is in a namespace, if there is such, and take away its name and its files."""
    if (SPACES / space).exists():
        empty(space)
        ip("netns", "delete", space)
    shutil.rmtree(FILES / space, ignore_errors=True)


def processes(space: str) -> list[int]:
    """Processes in a network namespace; those that ended and were not waited for are in none."""
    wanted, found = (SPACES / space).stat(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{name}/ns/net"), wanted):
                found.append(int(name))
    return found


def empty(space: str) -> None:
    """Kill all in a namespace, until also those are gone that were born meanwhile."""

    def kill_them() -> bool:
        pids = processes(space)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait(kill_them, f"processes in {space} do not end")


def wait(true: Callable[[], bool], complaint: str) -> None:
    """Until `true`; RuntimeError with the complaint after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{complaint} ({PATIENCE:.0f} s)")
        time.sleep(0.01)


def program(name: str) -> str:
    return shutil.which(name, path=SEARCH) or name


def ip(*words: str) -> None:
    call("ip", *words)


def ip_lines(space: str, lines: list[str]) -> None:
    call("ip", "-n", space, "-batch", "-", text="".join(line + "\n" for line in lines))


def call(name: str, *words: str, text: str = "") -> None:
    """Run a program with `text` as its input. Raises RuntimeError with what it complained of."""
    done = subprocess.run([program(name), *words], input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} {' '.join(words)}: {done.stderr.strip()}")
