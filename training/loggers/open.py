"""The loggers of a run. One that fails is dropped with one line; training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

Say = Callable[[str], None]


class Logger(Protocol):
    """figures: numbers by name. picture: a PNG."""

    def figures(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, png: bytes) -> None: ...

    def close(self) -> None: ...


class Loggers:
    """All loggers of a run, on rank 0. No method raises."""

    def __init__(self, names: list[str], directory: Path, settings: Mapping[str, Any], done_steps: int, say: Say):
        """Open them, to continue after `done_steps`. settings: of the run, by dotted key."""
        self._say, self._loggers = say, dict[str, Logger]()
        for name in names:
            self._guarded(name, partial(self._open, name, directory, settings, done_steps))

    def figures(self, step: int, values: Mapping[str, Any]) -> None:
        """A point of a curve for each value that is a number."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self._all(lambda logger: logger.figures(step, numbers))

    def picture(self, step: int, name: str, png: bytes) -> None:
        """A PNG under a name, for this step."""
        self._all(lambda logger: logger.picture(step, name, png))

    def close(self) -> None:
        self._all(lambda logger: logger.close())
        self._loggers = {}

    def _all(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            self._guarded(name, partial(act, logger))

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # of any kind, from any library: none of them is worth a run
            self._loggers.pop(name, None)
            reason = " ".join(str(error).split())[:200]
            self._say(f"run.loggers: {name} failed and gets nothing more ({type(error).__name__}: {reason})")

    def _open(self, name: str, directory: Path, settings: Mapping[str, Any], done_steps: int) -> None:
        if name == "tensorboard":
            from training.appended import Events

            self._loggers[name] = Events(directory / "tensorboard", done_steps + 1, self._say)
        elif name == "csv":
            from training.loggers.csv_file import CsvFile

            self._loggers[name] = CsvFile(directory / "metrics.csv", done_steps, self._say)
        elif name == "wandb":
            from training.loggers.wandb_run import WandbRun

            self._loggers[name] = WandbRun(directory, settings)
        else:
            from training.loggers.mlflow_run import MlflowRun

            self._loggers[name] = MlflowRun(directory, settings)
