"""A trained network out of a checkpoint, for evaluation and export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.libraries.names import is_own_code
from model.lora import merged
from model.state import rank_mean
from model.swav import SwAV
from model.teacher import teacher_weights
from model.weights import check_finite
from training.build import build_network, sizes_of
from training.checkpoint.masters import whole_masters
from training.checkpoint.save_load import CheckpointError, damage_of, latest_checkpoint, load_checkpoint, read_state

TEACHER = "@teacher"  # after the path of a run or checkpoint: its teacher in place of the network


@dataclass(frozen=True)
class Trained:
    """network: with the checkpoint's weights, on the CPU, in eval mode. state: the checkpoint's state.json."""

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
    """The checkpoint at `path`, or the newest whole one of a run's directory. Raises CheckpointError."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a run's directory or a folder checkpoints/step-...")
    if path.name.startswith("step-") or (path / "manifest.json").is_file():
        if damage := damage_of(path):
            raise CheckpointError(f"{path} is damaged: {damage}; give another checkpoint")
        return path
    newest = latest_checkpoint(path if path.name == "checkpoints" else path / "checkpoints")
    if newest is None:
        raise CheckpointError(f"{path}: no checkpoint there; give a run's directory or a folder checkpoints/step-...")
    return newest


def full_weights(checkpoint: Path, teacher: bool = False) -> dict[str, Tensor]:
    """The network's state dict on the CPU: float32 master parameters, and buffers averaged over the ranks.

    checkpoint: a whole one (`damage_of`). teacher: its teacher's in place of the network's. Raises CheckpointError
    where they are missing.
    """
    state, saved = load_checkpoint(checkpoint, {"shapes": dict, "buffers": list})
    try:
        if teacher:
            return teacher_weights(saved.ranks, state["shapes"], state["buffers"])
        buffers = {name: rank_mean(saved.ranks, f"own/{name}") for name in state["buffers"]}
        return whole_masters(saved, state["shapes"]) | buffers
    except KeyError as error:
        if teacher:
            raise CheckpointError(f"{checkpoint}: its run had no teacher (swav.teacher.momentum)") from None
        raise CheckpointError(f"{checkpoint} lacks {error}; another program wrote it") from None
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint}: state.json: shapes or buffers are malformed ({reason})") from None


def named_by_user(backbone: str, network: str, path: str) -> str:
    """The backbone to build for a file at `path` that says `backbone`: `network`, which the user has named after @, if
    the file's is of a kind that is named there. Raises ValueError, one line, if the user has to name it, or must not.
    """
    if network and not (is_own_code(backbone) or backbone.startswith("transformers:")):
        raise ValueError(f"{path}: its backbone is {backbone}; leave out @{network}")
    if is_own_code(backbone) and not network:
        raise ValueError(
            f"{path}: its backbone is a function, {backbone}, and swave runs no code because a file names it; if you "
            f"trust that code, name it yourself: {path}@{backbone}"
        )
    return network or backbone


def read_trained(path: Path, network: str = "") -> Trained:
    """The network of a run's directory or of a checkpoint, with adapters (`model.lora`) merged into its weights; with
    `TEACHER` after the path its teacher. Raises ValueError, in one line, if the path holds no network.

    network: what the user names in place of a checkpoint's `module:function` or transformers:FOLDER; the options remain
        the checkpoint's. The checkpoint's own function is never run, because anyone may have written it.
    """
    teacher = path.name.endswith(TEACHER)
    checkpoint = find_checkpoint(path.with_name(path.name.removesuffix(TEACHER)))
    state = read_state(checkpoint, {"config": dict})
    try:
        model = state["config"]["model"]
        model["backbone"] = named_by_user(model["backbone"], network, str(path))
        built = build_network(model, sizes_of(state["config"]), own_code=bool(network))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: its state.json describes no network ({error!r})") from None
    state = read_state(checkpoint, {"step": int, "images": int, "loader": dict})  # an export names them
    # Buffers that a network computes and no state dict has, such as the angles of rotary positions.
    computed = {name for name, _ in built.named_buffers()} - built.state_dict().keys()
    weights = full_weights(checkpoint, teacher)
    if (lora := state["config"]["model"].get("lora", {"rank": 0}))["rank"]:
        weights = merged(weights, lora["alpha"])
    weights = {name: value for name, value in weights.items() if name not in computed}
    try:
        built.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint}: its weights are not those of its configuration: {reason}") from None
    check_finite(weights, f"checkpoint {checkpoint}")
    return Trained(checkpoint, state, built.eval())
