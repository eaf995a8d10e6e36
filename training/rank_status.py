"""Files in which a rank reports to the supervisor of its node (`launch.node`): exit status, current step, stacks.

A rank writes its exit status when it ends, so a missing status means that it was killed. It writes the stacks of all
threads on request and on a crash. Without a supervisor a rank writes nothing and prints its own traceback. A rank ends
at once when its supervisor dies.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.cli import EXIT_FAILED, EXIT_SIGNAL, UserError, print_error
from common.files import write_atomically

WORDS = "SWAVE_WORDS"  # names the folder; unset without a supervisor
LIFELINE = "lifeline"  # a named pipe in that folder
SECOND_CTRL_C = "ended at once by a second Ctrl-C; the same command resumes from the last checkpoint"
STACKS = signal.SIGUSR2  # asks a rank to write the stacks of all its threads

STATUS_BYTES = 4096  # reserved for the status at the start, as the disk may be full at the end
LOST_PEER = re.compile("closed by peer|reset by peer|Broken pipe|ncclRemoteError")  # in the errors of gloo and NCCL

_ending = _failure = ""


def watched(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run `main(arguments)` and write its exit code, or the first line of its exception, as this rank's status."""
    folder = os.environ.get(WORDS)
    if folder:
        stacks = open(Path(folder) / f"{os.getpid()}.stacks", "w")  # noqa: SIM115  (open until the process ends)
        faulthandler.enable(stacks)
        faulthandler.register(STACKS, stacks)
        threading.Thread(target=end_with, args=(Path(folder) / LIFELINE,), daemon=True).start()
        (Path(folder) / f"{os.getpid()}.json").write_bytes(b" " * STATUS_BYTES)
    try:
        code = main(arguments)
    except SystemExit as end:
        write_status(int(end.code or 0), "")
        raise
    except KeyboardInterrupt:
        write_status(EXIT_SIGNAL + signal.SIGINT, "")
        print_error(SECOND_CTRL_C, below_bar=True)
        return EXIT_SIGNAL + signal.SIGINT
    except UserError as error:  # images of an evaluation; those of training end it by TrainingStopped
        write_status(EXIT_FAILED, str(error))
        print_error(error, below_bar=True)
        return EXIT_FAILED
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        write_status(1, f"{message} ({Path(place.filename).name}, line {place.lineno})")
        if not folder and LOST_PEER.search(message):
            print_error(f"another process has ended, so this one cannot go on ({message[:200]})", below_bar=True)
            return 1
        if not folder:
            raise
        # A rank that loses a peer fails as well. launch.start names the first failure and where its traceback lies.
        traceback.print_exception(error, file=stacks)
        stacks.flush()
        return 1
    write_status(code, _failure)
    return code


def end_with(lifeline: Path) -> None:
    """Kill this process when the named pipe closes. The supervisor holds it open while it lives."""
    with suppress(OSError), lifeline.open("rb") as pipe:
        pipe.read()
        os.kill(os.getpid(), signal.SIGKILL)


def mark_ending(how: str) -> None:
    """Record how the run ended ("done", "saved", ...). Without it `launch.start` reports a failure."""
    global _ending
    _ending = how


def tell_failure(error: BaseException, main: bool, on_all_ranks: bool) -> None:
    """Print why training cannot go on: rank 0 (`main`) for all ranks, or this rank if it alone knows. Then the launcher
    is told too, because the other ranks fail as well."""
    global _failure
    print_error(error, main or not on_all_ranks)
    _failure = "" if on_all_ranks else str(error)


def write_status(code: int, error: str) -> None:
    """Write this rank's status: exit code, error text (empty for success), how the run ended."""
    folder = os.environ.get(WORDS)
    text = json.dumps({"code": code, "error": error[: STATUS_BYTES // 8], "ended": _ending, "time": time.time()})
    if folder:
        with suppress(OSError), (Path(folder) / f"{os.getpid()}.json").open("r+b") as file:
            file.write(text.encode().ljust(STATUS_BYTES))


def beat(step: int) -> None:
    """Write that `step` has ended. A full disk does not end the run."""
    with suppress(OSError):
        _write("step", step)


def _write(kind: str, value: Any, pid: int = 0) -> None:
    folder = os.environ.get(WORDS)
    if folder:
        write_atomically(Path(folder) / f"{pid or os.getpid()}.{kind}", json.dumps(value), durable=False)


def write_rank(pid: int, rank: int) -> None:
    """Write which rank a process is. The launcher calls this for the processes that it starts."""
    _write("rank", rank, pid)


def ranks_of(folder: Path) -> dict[int, int]:
    """Process id -> rank, of all processes that the launcher has started."""
    return {int(path.stem): _read(path) for path in folder.glob("[0-9]*.rank")}


def status_of(folder: Path, pid: int) -> dict[str, Any] | None:
    """The status of a process, None if it wrote none."""
    return _read(folder / f"{pid}.json")


def step_of(folder: Path, pid: int) -> int:
    """The last step that a process completed, 0 before the first."""
    return _read(folder / f"{pid}.step") or 0


def stacks_of(folder: Path, pid: int) -> str:
    """The stacks that a process wrote, "" if it wrote none."""
    try:
        return (folder / f"{pid}.stacks").read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
