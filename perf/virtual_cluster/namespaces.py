"""Makes, lists, empties and removes swave's network namespaces with iproute2. Needs root."""

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
SPACES, FILES = Path("/run/netns"), Path("/etc/netns")  # names of `ip netns`, and the files it mounts over /etc
NAME = re.compile(r"swave-(\d+)-(\d+)-")  # id of the process, number of the subnet
TIMEOUT = 20.0  # seconds for a host to start or for a process to end


def remove_left_over() -> None:
    """Remove the namespaces of processes that have ended."""
    for space in _spaces():
        match = NAME.match(space)
        if match and not Path("/proc", match[1]).exists():
            remove(space)


def _spaces() -> set[str]:
    """Names in use: of namespaces and of their folders."""
    return {path.name for parent in (SPACES, FILES) if parent.is_dir() for path in parent.iterdir()}


def claim() -> tuple[str, int]:
    """Make the namespace for the network between hosts; returns its name and the number of an unused subnet."""
    taken = {int(match[2]) for match in map(NAME.match, _spaces()) if match}
    free = sorted(set(range(256)) - taken)
    if not free:
        raise RuntimeError("256 clusters of hosts exist already")
    wire = f"swave-{os.getpid()}-{free[0]}-wire"
    ip("netns", "add", wire)
    return wire, free[0]


def remove(space: str) -> None:
    """Kill the processes in a namespace, if it exists, and remove the namespace and its files."""
    if (SPACES / space).exists():
        empty(space)
        ip("netns", "delete", space)
    shutil.rmtree(FILES / space, ignore_errors=True)


def processes(space: str) -> list[int]:
    """Ids of the processes in a network namespace, without zombies."""
    namespace, pids = (SPACES / space).stat(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{name}/ns/net"), namespace):
                pids.append(int(name))
    return pids


def empty(space: str) -> None:
    """Kill all processes in a namespace, and those that these start meanwhile. Raises RuntimeError if some survive."""

    def kill_all() -> bool:
        pids = processes(space)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait(kill_all, f"processes in {space} do not end")


def wait(condition: Callable[[], bool], message: str) -> None:
    """Wait until `condition()` is condition. Raises RuntimeError with `message` after TIMEOUT."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{message} ({TIMEOUT:.0f} s)")
        time.sleep(0.01)


def program(name: str) -> str:
    return shutil.which(name, path=SEARCH) or name


def ip(*words: str) -> None:
    call("ip", *words)


def ip_lines(space: str, lines: list[str]) -> None:
    call("ip", "-n", space, "-batch", "-", text="".join(line + "\n" for line in lines))


def call(name: str, *words: str, text: str = "") -> None:
    """Run a program with `text` as its input. Raises RuntimeError with its error output if it fails."""
    process = subprocess.run([program(name), *words], input=text, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{name} {' '.join(words)}: {process.stderr.strip()}")
