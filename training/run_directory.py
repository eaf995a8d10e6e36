"""What a run leaves for people: its directory with configuration, versions, metrics.jsonl and TensorBoard events, and
the progress bar. Only rank 0 writes and speaks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.files import lock, write_atomically
from common.progress import tqdm
from common.versions import versions
from config.recipe import ConfigError
from config.schema.setting import SPEED
from config.schema.settings import defaults, effect_on_resume
from training.checkpoint.save_load import read_state
from training.report import closing_table

BAR = "{desc} {percentage:3.0f}%|{bar:20}| step {n_fmt}/{total_fmt}{postfix} [{elapsed}, ETA {remaining}]"


class Journal:
    """The records of a run in `directory`, on rank 0 (`main`); elsewhere everything here does nothing."""

    def __init__(self, directory: Path, main: bool):
        self.directory = directory
        self.main = main
        self._bar: Any = None
        self._tensorboard: Any = None
        self._metrics: Any = None
        self._lock: Any = None
        self._loss: float | None = None  # the last one logged, for the bar

    def finished(self, config: DictConfig) -> bool:
        """Whether the directory holds a run that is done; then its result is printed again. Raises ConfigError if that
        run has other settings."""
        summary = self.read("summary.json")
        if summary is None or summary["epochs"] < config.run.epochs:
            return False
        before = OmegaConf.load(self.directory / "config.yaml")
        changed_settings(config, OmegaConf.to_container(before))
        if Path(before.data.path).resolve() != Path(config.data.path).resolve():
            raise ConfigError(
                f"run.directory={self.directory} holds a finished run on data.path={before.data.path}; choose another"
            )
        self.say(closing_table(summary))
        self.say(f"{self.directory} is done; give another run.directory, or delete this one, to train anew")
        return True

    def take(self) -> None:
        """Make the directory and lock it for this run. Raises ConfigError if another run holds the lock, or if it
        cannot be written."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.main:
                self._lock = lock(self.directory / ".lock", wait=False)
        except BlockingIOError:
            raise ConfigError(f"run.directory={self.directory}: another run is writing it; choose another") from None
        except OSError as error:
            raise ConfigError(f"run.directory={self.directory}: {error.strerror}; choose another") from None

    def check_same_run(self, config: DictConfig, checkpoints: Path, images: int, digest: str) -> None:
        """Refuse to resume a run of other settings or images (ConfigError); say what has changed.

        Reads the newest readable checkpoint; without a checkpoint everything is allowed.
        """
        for path in sorted(checkpoints.glob("step-*"), reverse=True):
            try:
                state = read_state(path)
                saved, before, was = state["config"], state["images"], state["digest"]
                break
            except (OSError, ValueError, LookupError, TypeError):
                continue
        else:
            return
        changes = changed_settings(config, saved)
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

    def open(self, config: DictConfig, done_steps: int, total_steps: int) -> None:
        """Start or continue the records after `done_steps`; what an interrupted run wrote beyond them is dropped."""
        if not self.main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / "config.yaml", OmegaConf.to_yaml(config))
        write_atomically(self.directory / "versions.json", json.dumps(versions(), indent=1))
        shorter = self.read("summary.json")  # of a run that is lengthened now: the marker says that it is done
        if shorter is not None:
            (self.directory / "summary.json").rename(self.directory / f"summary-{shorter['epochs']}-epochs.json")
        path = self.directory / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= done_steps]
            write_atomically(path, "".join(line + "\n" for line in kept))
        self._metrics = path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(self.directory / "tensorboard", purge_step=done_steps + 1)
        self._bar = tqdm(
            total=total_steps,
            initial=done_steps,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
            bar_format=BAR,
        )

    def progress(self, epoch: int, images_per_second: float) -> None:
        """One step further on the bar."""
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {epoch + 1}", refresh=False)
            loss = "" if self._loss is None else f"loss {self._loss:.3f}, "
            self._bar.set_postfix_str(f"{loss}{images_per_second:,.0f} images/s", refresh=False)
            self._bar.update(1)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and of each number in it a point of TensorBoard's curves."""
        self._loss = values.get("loss", self._loss)
        if self._metrics is not None:
            self._metrics.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                if not isinstance(value, dict):
                    self._tensorboard.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """A line to the terminal, above the bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)

    def warn(self, step: int, text: str) -> None:
        """A line to the terminal and one of metrics.jsonl."""
        self.say(text)
        if self._metrics is not None:
            self._metrics.write(json.dumps({"step": step, "warning": text}) + "\n")

    def record(self, name: str, values: dict[str, Any]) -> None:
        """Write `directory/name`, a JSON file, atomically."""
        if self.main:
            write_atomically(self.directory / name, json.dumps(values, indent=1) + "\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as done by summary.json, and print the closing table."""
        summary = {"directory": str(self.directory), **summary, "versions": versions()}
        self.record("summary.json", summary)
        self.close()
        self.say(closing_table(summary))

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the directory, None if it is not there. On every rank."""
        path = self.directory / name
        return json.loads(path.read_text()) if path.exists() else None

    def close(self) -> None:
        """End the bar and the files."""
        for part in (self._bar, self._tensorboard, self._metrics):
            if part is not None:
                part.close()
        self._bar = self._tensorboard = self._metrics = None


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


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for key in node for k, v in _flat(node[key], f"{prefix}.{key}" if prefix else str(key)).items()}


def _step_of(line: str) -> int:
    """The step of a line of metrics; a line that a kill cut short counts as after everything."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return sys.maxsize
