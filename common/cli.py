"""The command line: one argument parser, one form of error message, and the exit codes of every program.

A mistake in arguments, settings or data is one line on stderr, `swave: ...`, and exit code 2; a failure while the
program works is one line and exit code 1.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

EXIT_DONE = 0  # also: saved on a signal
EXIT_FAILED = 1  # the work could not go on
EXIT_MISTAKE = 2  # a mistake in arguments, settings or data
EXIT_SIGNAL = 128  # plus the signal's number

ERROR_PREFIX = "swave: "

# An ending interpreter looks for cycles in all objects, which takes half a second once torch is imported. It does not
# look at frozen ones.
atexit.register(gc.freeze)


class UserError(ValueError):
    """A user's mistake; the message is one line that names the setting, its value and the remedy."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without the usage; the description keeps its line breaks. A path may start with
    `~`: the shell does not replace it after `--option=` or in quotes."""

    def __init__(self, prog: str, description: str | None = None, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, description=description, **settings)
        self.register("type", Path, lambda text: Path(text).expanduser())

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, f"{error_line(message)}\n")


def at_least(low: int) -> Callable[[str], int]:
    """The `type` of a Parser's argument: an integer of at least `low`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text}: expected an integer of at least {low}")
        return value

    return number


def error_line(error: BaseException | str) -> str:
    """`swave: ` and the message, its line breaks replaced by blanks."""
    return ERROR_PREFIX + " ".join(str(error).split())


def print_error(error: BaseException | str, speaks: bool = True, below_bar: bool = False) -> None:
    """Print one line on stderr. speaks: false on ranks other than 0, which print nothing. below_bar: keep the last line
    (a progress bar may stand there)."""
    if speaks:
        print("\n" * below_bar + error_line(error), file=sys.stderr, flush=True)


def note(text: str) -> None:
    """A line on stderr that is not an error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def exit_on_mistake(speaks: bool | Callable[[], bool] = True) -> Iterator[None]:
    """Inside the block a ValueError is a user's mistake: one line, exit code 2, no stack trace.

    ConfigError, DatasetError, CheckpointError and the model's refusals are all ValueErrors. speaks: false on ranks
    other than 0, which print nothing; a function where the block itself finds out the rank.
    """
    try:
        yield
    except ValueError as error:
        print_error(error, speaks if isinstance(speaks, bool) else speaks())
        raise SystemExit(EXIT_MISTAKE) from None
