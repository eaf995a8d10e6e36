"""A rank's last word: how it ended, for the supervisor of its node (`launch.node`), which started it.

A rank that was killed leaves none, and that says so.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = "SWAVE_WORDS"  # names the folder for the last words; unset where no supervisor asks


def watched(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """`main(arguments)`; its exit code, or the first line of what it raised, is left as this rank's last word."""
    try:
        code = main(arguments)
    except SystemExit as end:
        last_word(int(end.code or 0), "")
        raise
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        last_word(1, f"{told} ({Path(place.filename).name}, line {place.lineno})")
        raise
    last_word(code, "")
    return code


def last_word(code: int, error: str) -> None:
    """Leave it, whole, for whoever started us."""
    folder = os.environ.get(WORDS)
    if folder:
        path = Path(folder) / f"{os.getpid()}.json"
        path.with_suffix(".new").write_text(json.dumps({"code": code, "error": error, "time": time.time()}))
        path.with_suffix(".new").replace(path)


def word_of(folder: Path, pid: int) -> dict[str, Any] | None:
    """The last word of a process, None if it left none."""
    try:
        return json.loads((folder / f"{pid}.json").read_text())
    except (OSError, ValueError):
        return None
