"""What a rank leaves for the supervisor of its node (`launch.node`), which started it: its last word, the step that it
is in, and its stacks if it is asked for them or falls.

A rank that was killed leaves no last word, and that says so. Where no supervisor asks, nothing is written, and a rank
that falls prints its traceback itself. A rank whose supervisor is gone ends at once.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.files import write_atomically

WORDS = "SWAVE_WORDS"  # names the folder; unset where no supervisor asks
LIFELINE = "lifeline"  # a named pipe in it
STACKS = signal.SIGUSR2  # asks a rank to write where all its threads are

_ending = ""


def watched(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """`main(arguments)`; its exit code, or the first line of what it raised, is left as this rank's last word."""
    folder = os.environ.get(WORDS)
    if folder:
        stacks = open(Path(folder) / f"{os.getpid()}.stacks", "w")  # noqa: SIM115  (written to when we can no more)
        faulthandler.enable(stacks)
        faulthandler.register(STACKS, stacks)
        threading.Thread(target=end_with, args=(Path(folder) / LIFELINE,), daemon=True).start()
    try:
        code = main(arguments)
    except SystemExit as end:
        last_word(int(end.code or 0), "")
        raise
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        last_word(1, f"{told} ({Path(place.filename).name}, line {place.lineno})")
        if not folder:
            raise
        # Each rank that loses another falls too: launch.start says in one line which was the first, and where this is.
        traceback.print_exception(error, file=stacks)
        stacks.flush()
        return 1
    last_word(code, "")
    return code


def end_with(lifeline: Path) -> None:
    """Wait for the end of a named pipe that the supervisor holds open while it lives; then this process is killed."""
    with suppress(OSError), lifeline.open("rb") as pipe:
        pipe.read()
        os.kill(os.getpid(), signal.SIGKILL)


def mark_ending(how: str) -> None:
    """Say what the run has come to ("done", "saved", ...): only then does `launch.start` call it a success."""
    global _ending
    _ending = how


def last_word(code: int, error: str) -> None:
    """Leave it, whole, for whoever started us."""
    _leave("json", {"code": code, "error": error, "ended": _ending, "time": time.time()})


def beat(step: int) -> None:
    """Leave word that `step` has ended."""
    _leave("step", step)


def _leave(kind: str, value: Any) -> None:
    folder = os.environ.get(WORDS)
    if folder:
        write_atomically(Path(folder) / f"{os.getpid()}.{kind}", json.dumps(value), durable=False)


def word_of(folder: Path, pid: int) -> dict[str, Any] | None:
    """The last word of a process, None if it left none."""
    return _left(folder / f"{pid}.json")


def step_of(folder: Path, pid: int) -> int:
    """The last step that a process has ended, 0 if none."""
    return _left(folder / f"{pid}.step") or 0


def stacks_of(folder: Path, pid: int) -> str:
    """What a process wrote of its stacks, "" if nothing."""
    try:
        return (folder / f"{pid}.stacks").read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _left(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
