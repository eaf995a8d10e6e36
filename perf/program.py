"""How the benchmarks of perf/ run and end: signals, mistakes and failures in one line, the report shown and written."""

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
    """Measure, show, and write the report to `path`; the exit code: 2 for a mistake (ValueError, OSError, ImportError),
    1 for a failure (RuntimeError), 128 and its number after a signal.

    measure: is given what signals have raised so far. What falls into a library's callback is lost there, so that a
    long measurement raises the first of it again.
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
