"""The frame of a benchmark: show and write its report; signals, mistakes and failures end it with one line."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.cli import EXIT_FAILED, EXIT_MISTAKE, EXIT_SIGNAL, print_error
from common.signals import ENDING, Stopped

Report = dict[str, Any]
AGAIN = 0.01  # seconds until an exception that Python dropped is raised again


def check_base(base: Path | None, needs: str) -> None:
    """Raise ValueError unless `base`, an older checkout to compare with, has the file or folder `needs`."""
    if base is not None and not (base / needs).exists():
        raise ValueError(f"--base={base}: expected a checkout of swave")


def program(
    measure: Callable[[Sequence[BaseException]], Report], show: Callable[[Report], None], path: Path | None
) -> int:
    """Measure, show the report, and write it to `path` as JSON. Returns the exit code: 0, 2 for a mistake (ValueError,
    OSError, ImportError), 1 for a failure (RuntimeError), or 128 + the number of a signal.

    measure: gets a list with the exception that a signal has raised, empty before. Python drops an exception that is
    raised inside a finalizer; it is raised again a moment later. A library may drop one of its own accord, so a long
    measurement checks this list and raises its first entry again.
    """
    stopped: list[BaseException] = []

    def stop(number: int, _frame: Any) -> None:
        if not stopped:
            stopped.append(Stopped(number) if number == signal.SIGINT else SystemExit(EXIT_SIGNAL + number))
        raise stopped[0]

    def lost(unraisable: Any) -> None:  # Python drops what is raised inside a finalizer or a callback of C code
        if unraisable.exc_value in stopped:
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            sys.__unraisablehook__(unraisable)

    for number in (*ENDING, signal.SIGALRM):
        signal.signal(number, stop)
    sys.unraisablehook = lost
    try:
        report = measure(stopped)
    except (ValueError, OSError, ImportError) as error:
        print_error(error)
        return EXIT_MISTAKE
    except RuntimeError as error:
        print_error(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print_error("stopped; nothing is written", below_bar=True)
        return EXIT_SIGNAL + signal.SIGINT
    finally:
        for process in multiprocessing.active_children():
            process.kill()
    show(report)
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{path}: written")
    return 0
