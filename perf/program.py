"""The frame of a benchmark: show and write its report; signals, mistakes and failures end it with one line."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.cli import EXIT_FAILED, EXIT_MISTAKE, EXIT_SIGNAL, print_error
from common.signals import ENDING, Stopped

Report = dict[str, Any]


def program(
    measure: Callable[[Sequence[BaseException]], Report], show: Callable[[Report], None], path: Path | None
) -> int:
    """Measure, show the report, and write it to `path` as JSON. Returns the exit code: 0, 2 for a mistake (ValueError,
    OSError, ImportError), 1 for a failure (RuntimeError), or 128 + the number of a signal.

    measure: gets the list of exceptions that signals have raised so far. An exception raised inside a callback of a
    library is lost, so a long measurement checks this list and raises its first entry again.
    """
    stopped: list[BaseException] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(Stopped(number) if number == signal.SIGINT else SystemExit(EXIT_SIGNAL + number))
        raise stopped[0]

    for number in ENDING:
        signal.signal(number, stop)
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
