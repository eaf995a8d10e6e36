"""What a run leaves for people: its directory with configuration, versions, metrics.jsonl and TensorBoard events, and
the progress bar. Only rank 0 writes and speaks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.files import lock, replacing, sha256, write_atomically
from common.progress import tqdm
from common.versions import versions
from config.recipe import ConfigError, paths_of
from config.schema.setting import SPEED
from config.schema.settings import defaults, effect_on_resume
from training.appended import Appended
from training.checkpoint.save_load import damage_of, read_state
from training.loggers.open import Loggers
from training.report import closing_table
from training.stopping import TrainingStopped

BEGUN = "the run has begun with it"  # as training.auto says it
BAR = "{desc} {percentage:3.0f}%|{bar:20}| step {n_fmt}/{total_fmt}{postfix} [{elapsed}, ETA {remaining}]"


class Journal:
    """The records of a run in `directory`, on rank 0 (`main`); elsewhere everything here does nothing."""

    def __init__(self, directory: Path, main: bool):
        self.directory = directory
        self.main = main
        self._bar: Any = None
        self._loggers: Loggers | None = None
        self._metrics: Any = None
        self._lock: Any = None
        self.chosen: dict[str, str] = {}
        self._loss: float | None = None  # the last one logged, for the bar

    def finished(self, config: DictConfig) -> bool:
        """Whether the directory holds a run that is done; then its result is printed again. Raises ConfigError if that
        run has other settings."""
        summary = self.read("summary.json")
        if summary is None or not self._fits(summary):
            return False
        if summary["epochs"] < config.run.epochs:
            return False
        self._require_epochs(config.run.epochs, summary["epochs"], 0)
        before = self._saved_settings()
        if before is None:
            self.say(f"{self.directory / 'config.yaml'} is damaged; the run is taken up again")
            return False
        changed_settings(config, before)
        if _resolved(before["data"]) != _resolved(config.data):
            raise ConfigError(
                f"run.directory={self.directory} holds a finished run on data.path={before['data']['path']}; "
                "choose another"
            )
        self.say(closing_table(summary))
        self.say(f"{self.directory} is done; give another run.directory, or delete this one, to train again")
        return True

    def _saved_settings(self) -> Any:
        """The settings of the run in the directory: those of a checkpoint, or else of config.yaml; None if damaged."""
        state = newest_state(self.directory / "checkpoints")
        if state is not None:
            return state["config"]
        with suppress(OSError, ValueError, YAMLError, OmegaConfBaseException):
            saved: Any = OmegaConf.to_container(OmegaConf.load(self.directory / "config.yaml"))
            if isinstance(saved, dict) and isinstance(saved.get("data"), dict) and "path" in saved["data"]:
                return saved
        return None

    def _fits(self, summary: dict[str, Any]) -> bool:
        """Whether a summary is whole, and that of the checkpoint that it names."""
        try:
            closing_table(summary)
            checkpoint = self.directory / "checkpoints" / Path(summary["checkpoint"]).name
            told = summary.get("manifest")  # older versions did not write it
            if not told or not checkpoint.exists() or told == sha256(checkpoint / "manifest.json"):
                return True
        except (OSError, LookupError, TypeError, ValueError):
            pass
        self.say(f"{self.directory / 'summary.json'} is damaged or another run's; it is made again")
        return False

    def take(self, choices: Sequence[str] = ()) -> None:
        """Make the directory and lock it for this run; say and keep what `auto` chose, a line of training.auto.fit
        each. Raises ConfigError if another run holds the lock, or if it cannot be written."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.main:
                self._lock = lock(self.directory / ".lock", wait=False)
        except BlockingIOError:
            raise ConfigError(f"run.directory={self.directory}: another run is writing it; choose another") from None
        except OSError as error:
            raise ConfigError(f"run.directory={self.directory}: {error.strerror}; choose another") from None
        for choice in choices:
            self.say(f"auto: {choice}")
        before = self.read("auto.json") or {} if choices else {}
        self.chosen = before | {key: why for key, why in _chosen(choices) if BEGUN not in why or key not in before}

    def begun_with(self) -> dict[str, Any] | None:
        """The settings of the run so far, as nested sections with every `auto` chosen; None before its first
        checkpoint."""
        state = newest_state(self.directory / "checkpoints")
        return None if state is None else state["config"]

    def check_same_run(self, config: DictConfig, images: int, digest: str) -> None:
        """Refuse to resume a run of other settings or images, or one that has done more epochs (ConfigError); say what
        has changed. Reads the newest whole state.json; without one everything is allowed."""
        state = newest_state(self.directory / "checkpoints")
        if state is None:
            return
        before, was = state["images"], state["digest"]
        changes = changed_settings(config, state["config"])
        self._require_epochs(config.run.epochs, state["loader"]["epoch"], state["loader"]["samples"])
        if before != images:
            raise ConfigError(
                f"data.path={config.data.path} has {images} usable images, the run in {self.directory} was started "
                f"with {before}; its order would be another one: choose another run.directory"
            )
        if was != digest:
            raise ConfigError(
                f"data.path={config.data.path} holds other images than the run in {self.directory} was started with; "
                "choose another run.directory"
            )
        for key, change in changes.items():
            if effect_on_resume(key) != SPEED:
                self.say(f"changed since the last checkpoint: {key}: {change} ({effect_on_resume(key)})")

    def _require_epochs(self, epochs: int, done: int, samples: int) -> None:
        """ConfigError if a run of `epochs` would end before what is done: whole epochs, and samples of the next."""
        if epochs < done + (samples > 0):
            part = " and a part of the next one" if samples else ""
            raise ConfigError(
                f"run.epochs={epochs}: the run in {self.directory} has already done {done} epochs{part}; "
                f"give {done + (samples > 0)} or more, or another run.directory"
            )

    def open(self, config: DictConfig, done_steps: int, total_steps: int) -> None:
        """Start or continue the records after `done_steps`; what an interrupted run wrote beyond them is dropped.
        Raises TrainingStopped."""
        if not self.main:
            return
        with self._writing():
            self._open_files(config, done_steps)
        self._bar = tqdm(
            total=total_steps,
            initial=done_steps,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
            bar_format=BAR,
        )

    def _open_files(self, config: DictConfig, done_steps: int) -> None:
        write_atomically(self.directory / "config.yaml", OmegaConf.to_yaml(config))
        write_atomically(self.directory / "versions.json", json.dumps(versions(), indent=1))
        write_atomically(self.directory / "auto.json", json.dumps(self.chosen, indent=1))
        shorter = self.read("summary.json")  # of a run that is lengthened now: the marker says that it is done
        if shorter is not None:
            (self.directory / "summary.json").rename(self.directory / f"summary-{shorter['epochs']}-epochs.json")
        path = self.directory / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines() if _step_of(line) <= done_steps]
            with replacing(path) as file:
                file.writelines(line + b"\n" for line in kept)
        self._metrics = Appended(path, self.say)
        settings = _flat(OmegaConf.to_container(config))
        self._loggers = Loggers(list(config.run.loggers), self.directory, settings, done_steps, self.say)

    def progress(self, epoch: int, images_per_second: float) -> None:
        """One step further on the bar."""
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {epoch + 1}", refresh=False)
            loss = "" if self._loss is None else f"loss {self._loss:.3f}, "
            self._bar.set_postfix_str(f"{loss}{images_per_second:,.0f} images/s", refresh=False)
            self._bar.update(1)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and of each number in it a point of the loggers' curves."""
        self._loss = values.get("loss", self._loss)
        if self._metrics is not None:
            self._add_line({"step": step, **values})
        if self._loggers is not None:
            self._loggers.figures(step, values)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """A PNG for the loggers (run.loggers)."""
        if self._loggers is not None:
            self._loggers.picture(step, name, png)

    def say(self, text: str) -> None:
        """A line to the terminal, above the bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)

    def ended(self, text: str, how: str) -> str:
        """Say why a run ends; returns `how` it ends."""
        self.say(text)
        return how

    def warn(self, step: int, text: str) -> None:
        """A line to the terminal and one of metrics.jsonl."""
        self.say(text)
        if self._metrics is not None:
            self._add_line({"step": step, "warning": text})

    def _add_line(self, values: dict[str, Any]) -> None:
        self._metrics.write(f"{json.dumps(values)}\n".encode())

    def record(self, name: str, values: dict[str, Any]) -> None:
        """Write `directory/name`, a JSON file, atomically. Raises TrainingStopped."""
        if self.main:
            with self._writing():
                write_atomically(self.directory / name, json.dumps(values, indent=1) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """An OSError inside the block becomes TrainingStopped, in one line."""
        try:
            yield
        except OSError as error:
            problem = f"{error.filename or self.directory}: {error.strerror}"
            raise TrainingStopped(f"{problem}; repair it, and the same command goes on from here") from None

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as done by summary.json, and print the closing table. Raises TrainingStopped."""
        with self._writing():
            manifest = sha256(Path(summary["checkpoint"]) / "manifest.json")
        summary = {"directory": str(self.directory), **summary, "manifest": manifest, "versions": versions()}
        self.record("summary.json", summary)
        self.close()
        self.say(closing_table(summary))

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the directory, None if it is not there or, after a line, if it is damaged. On every rank."""
        path = self.directory / name
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            self.say(f"{path} is damaged; it is not used")
            return None
        return values

    def close(self) -> None:
        """End the bar and the files."""
        for part in (self._bar, self._loggers, self._metrics):
            if part is not None:
                part.close()
        self._bar = self._loggers = self._metrics = None


def newest_state(checkpoints: Path) -> dict[str, Any] | None:
    """state.json of the newest checkpoint in which it is whole; None without one."""
    for path in sorted(checkpoints.glob("step-*"), reverse=True):
        with suppress(OSError, ValueError):
            if not damage_of(path, only="state.json"):
                return read_state(path, {"config": dict, "images": int, "digest": str, "loader": dict})
    return None


def changed_settings(config: DictConfig, saved: Any) -> dict[str, str]:
    """`key: old -> new` of every setting that differs from a saved configuration. ConfigError for one that may not."""
    new = _flat(OmegaConf.to_container(config))
    # A setting that is newer than the saved run: the run was trained at its default.
    fallback = {key: new.get(key) if value == "auto" else value for key, value in _flat(defaults()).items()}
    old = fallback | _flat(saved)
    changed = {key: f"{old.get(key)} -> {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)}
    for key, change in changed.items():
        if not effect_on_resume(key):
            raise ConfigError(
                f"run.directory={config.run.directory} holds a run with other settings ({key}: {change}); "
                "choose another run.directory"
            )
    return changed


def _resolved(data: Any) -> list[Path]:
    return [Path(path).resolve() for path in paths_of(data)]


def _chosen(choices: Sequence[str]) -> list[tuple[str, str]]:
    """Key, and value with reason, of each setting in the lines of training.auto.fit."""
    lines = (choice.partition("  (")[::2] for choice in choices)
    pairs = [
        (pair, why.partition("; override with")[0].rstrip(")")) for text, why in lines for pair in text.split(", ")
    ]
    return [(pair.partition("=")[0], f"{pair.partition('=')[2]}  ({why})") for pair, why in pairs]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for key in node for k, v in _flat(node[key], f"{prefix}.{key}" if prefix else str(key)).items()}


def _step_of(line: bytes) -> int:
    """The step of a line of metrics; a damaged one, such as a kill leaves, counts as after everything."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return sys.maxsize
