"""Checkpoints: tensors by name and JSON, whole or not there at all, written by any number of ranks.

A checkpoint is the folder `checkpoints/step-000001234` with

    rank-00000.safetensors, ...   each rank's tensors (shards.py says how they are named)
    state.json                    step, world_size, and the JSON values that the caller adds
    manifest.json                 size and SHA-256 of all other files; written last

All ranks write into one folder under a temporary name (so it must be on a file system that they share) and sync their
files; rank 0 writes the manifest, syncs, renames the folder, and then replaces `latest`. A kill at any point, or a
full disk, leaves the previous checkpoint the newest whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.files import fingerprint, sync, write_atomically
from common.progress import in_main_process, progress_bar
from training.checkpoint.shards import CheckpointError, SavedTensors, rank_file, tensors_to_write

STEP = "step-{:09d}"
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError)  # what damaged files raise
JSON_TYPES = {int: "an integer", str: "a string", dict: "an object", list: "a list"}


class NotSaved(OSError):
    """A checkpoint could not be written, on any rank; the one before it is whole. In one line."""


# ---------------------------------------------------------------------------------------------- save
def save_checkpoint(
    directory: Path, state: dict[str, Any], tensors: Mapping[str, torch.Tensor], keep: int, keep_steps: int = 0
) -> Path:
    """Save `directory/step-...`; to be called on all ranks at once.

    state: JSON values, with "step"; rank 0's are saved. tensors: this rank's, by name (shards.py).
    keep: how many of the newest stay; keep_steps: every checkpoint whose step is a multiple of it stays too (0: off).

    Returns the checkpoint's path once it is on disk and `latest` names it; a whole checkpoint of the step is left as
    it is. Raises NotSaved, on all ranks, if any rank cannot write or has a value that is not finite.
    """
    rank, world_size = _rank(), _world_size()
    final = directory / STEP.format(state["step"])
    temporary = directory / f".writing-{final.name}"
    if _from_rank_0(lambda: not damage_of(final)):
        return final
    _together(rank == 0, lambda: _fresh(temporary), "")

    def write() -> dict[str, Any]:
        files = [rank_file(rank)]
        mine = tensors_to_write(tensors, rank, world_size)
        bad = [name for name, values in mine.items() if not torch.isfinite(values).all()]
        if bad:  # a run must never resume from it
            raise OSError(f"{len(bad)} tensors are not finite, {bad[0]} first")
        save_file(mine, temporary / files[0])
        if rank == 0:
            files.append("state.json")
            (temporary / "state.json").write_text(json.dumps(state | {"world_size": world_size}, indent=1))
        for name in files:
            sync(temporary / name)
        return {name: fingerprint(temporary / name) for name in files}

    written = _together(True, write, temporary)

    def finish() -> None:
        manifest = {name: entry for part in written for name, entry in part.items()}
        missing = [name for name, entry in manifest.items() if _size(temporary / name) != entry["bytes"]]
        if missing:
            raise OSError(f"{missing[0]} is not there: run.directory must be on a file system that all nodes share")
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        sync(temporary / "manifest.json")
        sync(temporary)
        if final.exists():
            shutil.rmtree(final)  # a damaged one of the same step
        temporary.rename(final)
        sync(directory)
        write_atomically(directory / "latest", final.name + "\n")
        _forget_old(directory, keep, keep_steps)

    _together(rank == 0, finish, temporary)
    return final


def _fresh(temporary: Path) -> None:
    """Make the folder, empty; unfinished folders that killed runs left are deleted."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for leftover in temporary.parent.glob(".writing-*"):
        shutil.rmtree(leftover)
    temporary.mkdir()


def _forget_old(directory: Path, keep: int, keep_steps: int) -> None:
    for old in sorted(directory.glob("step-*"))[:-keep]:
        number = old.name.removeprefix("step-")
        if not (keep_steps and number.isdigit() and int(number) % keep_steps == 0):
            shutil.rmtree(old, ignore_errors=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


# ---------------------------------------------------------------------------------------------- find
def latest_checkpoint(directory: Path, say: Any = None) -> Path | None:
    """The newest whole checkpoint, the same on all ranks; None if the folder holds no checkpoint.

    say: called with a line for each newer checkpoint that is damaged. Raises CheckpointError if all are damaged.
    The file `latest` is for people and is not read: a kill right before it is replaced must not cost a checkpoint.
    """
    names = _from_rank_0(lambda: sorted((path.name for path in directory.glob("step-*")), reverse=True))
    for name in names:
        damage = _from_rank_0(lambda name=name: damage_of(directory / name))
        if not damage:
            return directory / name
        if say is not None:
            say(f"{directory / name} is damaged ({damage}); the one before it is used")
    if names:
        raise CheckpointError(f"{directory}: no checkpoint is whole; move the folder away to start from the beginning")
    return None


def damage_of(checkpoint: Path, only: str = "") -> str:
    """Why a checkpoint is not whole, '' if it is: the files must be those of the manifest, each with its size and
    SHA-256. only: the one file to read; all of them by default."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        files = {path.name for path in checkpoint.iterdir()}
        if "state.json" not in manifest or files != {*manifest, "manifest.json"}:
            return "its files are not those of its manifest"
        names = [name for name in manifest if only in ("", name)]
        size = sum(manifest[name]["bytes"] for name in names)
        with progress_bar(size, f"checking {checkpoint.name}", "B", in_main_process()) as bar:
            for name in names:
                if fingerprint(checkpoint / name, bar.update) != manifest[name]:
                    return f"{name} is not as it was written"
    except FileNotFoundError:
        return "no manifest"
    except DAMAGE as error:
        return f"manifest.json: {' '.join(str(error).split())[:80]}"
    return ""


# ---------------------------------------------------------------------------------------------- load
def load_checkpoint(checkpoint: Path, keys: Mapping[str, type] | None = None) -> tuple[dict[str, Any], SavedTensors]:
    """state.json and the tensors of a whole checkpoint, the same on all ranks.

    keys: values that state.json must hold besides step and world_size, with their types. Raises CheckpointError.
    """
    state = read_state(checkpoint, {"step": int, "world_size": int, **(keys or {})})
    return state, SavedTensors(checkpoint, state["world_size"])


def read_state(checkpoint: Path, keys: Mapping[str, type] | None = None) -> dict[str, Any]:
    """state.json of a checkpoint. Raises CheckpointError if it is no JSON object, or one of `keys` is missing or of
    another type; OSError if it cannot be read."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: state.json is not JSON ({error})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{checkpoint}: state.json is not a JSON object")
    for key, type_ in (keys or {}).items():
        if key not in state:
            raise CheckpointError(f"{checkpoint}: state.json lacks '{key}'; another program wrote it")
        if not isinstance(state[key], type_):
            value = json.dumps(state[key])[:60]
            raise CheckpointError(f"{checkpoint}: state.json: '{key}' is {value}, expected {JSON_TYPES[type_]}")
    return state


# ---------------------------------------------------------------------------------------------- ranks
def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _from_rank_0(ask: Any) -> Any:
    """Rank 0's result of `ask`, on all ranks."""
    answer = [ask() if _rank() == 0 else None]
    if _world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    return answer[0]


def _together(mine: bool, act: Any, temporary: Path | str) -> list[Any]:
    """Every rank's result of `act` (None where not `mine`), on all ranks. If one rank fails, all raise NotSaved and
    rank 0 deletes the unfinished folder."""
    result, problem = None, ""
    try:
        result = act() if mine else None
    except (OSError, SafetensorError) as error:
        problem = f"rank {_rank()}: {getattr(error, 'strerror', None) or error}"
    answers: list[Any] = [(result, problem)] * _world_size()
    if _world_size() > 1:
        dist.all_gather_object(answers, (result, problem))
    problems = [problem for _, problem in answers if problem]
    if problems:
        if _rank() == 0 and temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise NotSaved(f"no checkpoint could be written ({problems[0]})")
    return [result for result, _ in answers]
