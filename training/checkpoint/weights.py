"""A trained network out of a checkpoint, for whoever does not go on training it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.swav import SwAV
from training.build import build_network
from training.checkpoint.save_load import CheckpointError, damage_of, full_weights, latest_checkpoint, read_state

TEACHER = "@teacher"  # behind the path of a run or checkpoint: the moving average in place of the network


@dataclass(frozen=True)
class Trained:
    """network: with the checkpoint's weights, on the CPU, in eval mode. state: its state.json."""

    checkpoint: Path
    state: dict[str, Any]
    network: SwAV

    @property
    def config(self) -> dict[str, Any]:
        return self.state["config"]

    @property
    def backbone_name(self) -> str:
        return self.config["model"]["backbone"]

    @property
    def options(self) -> dict[str, Any]:
        """The backbone's model.options."""
        return self.config["model"]["options"]

    def run_file(self, name: str) -> dict[str, Any]:
        """A JSON file of the run's directory, empty if it is not there."""
        path = self.checkpoint.parent.parent / name
        return json.loads(path.read_text()) if path.is_file() else {}


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the latest one of a run's directory. Raises CheckpointError."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a run's directory or a folder checkpoints/step-...")
    if path.name.startswith("step-") or (path / "manifest.json").is_file():
        if damage := damage_of(path):
            raise CheckpointError(f"{path} is damaged: {damage}; give another checkpoint")
        return path
    found = latest_checkpoint(path if path.name == "checkpoints" else path / "checkpoints")
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint there; give a run's directory or a folder checkpoints/step-...")
    return found


def read_trained(path: Path) -> Trained:
    """The network of a run's directory or of a checkpoint, or with `TEACHER` behind it the teacher. Raises ValueError,
    one line, if there is none to be had."""
    teacher = path.name.endswith(TEACHER)
    checkpoint = find_checkpoint(path.with_name(path.name.removesuffix(TEACHER)))
    state = read_state(checkpoint)
    try:
        network = build_network(state["config"]["model"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: its state.json tells of no network ({error!r})") from None
    try:
        network.load_state_dict(full_weights(checkpoint, teacher))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint}: its weights are not those of its configuration: {reason}") from None
    return Trained(checkpoint, state, network.eval())
