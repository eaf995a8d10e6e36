"""Checkpoints: safetensors and JSON, whole or not there at all, for any number of ranks and any ZeRO stage.

A checkpoint is the folder `checkpoints/step-000001234` with

    rank-00000.safetensors, ...   each rank's share of masters and optimizer state, and what is its own (pieces.py)
    state.json                    step, position, ledger, world size, shapes, configuration
    manifest.json                 size and SHA-256 of all the others; written last

All ranks write into one folder under a temporary name (so it must be on a file system that they share) and sync their
files; rank 0 writes the manifest, syncs, renames the folder, and replaces `latest` after that. A kill at any point, or
a full disk, leaves the previous checkpoint in charge.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.files import fingerprint, sync, write_atomically
from model.queue import EmbeddingQueue
from training.checkpoint.shards import (
    Pieces,
    beside_of,
    own_of,
    pieces_of,
    rank_file,
    restore,
    restore_beside,
    restore_own,
    whole,
    whole_teacher,
)

if TYPE_CHECKING:
    from training.epoch_targets import Clusters

STEP = "step-{:09d}"
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError)  # what damaged files raise


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one line."""


class NotSaved(OSError):
    """A checkpoint could not be written, on all ranks alike; the one before it is whole. In one line."""


# ---------------------------------------------------------------------------------------------- save
def save_checkpoint(
    directory: Path,
    state: dict[str, Any],
    network: torch.nn.Module,
    optimizer: Any,
    queue: EmbeddingQueue | None,
    keep: int,
    keep_steps: int = 0,
    clusters: Clusters | None = None,
    beside: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Save everything as `directory/step-...`; to be called on all ranks at once.

    state: JSON values, with "step". optimizer: its `layout` says which parameters its tensors hold.
    keep: how many of the newest stay; keep_steps: those whose step is a multiple of it stay for ever (0: none).
    beside: more tensors to save, by what each rank's file calls them (pieces.py).
    Returns the checkpoint's path once it is on disk and `latest` names it. Raises NotSaved, on all ranks.
    """
    rank, world_size = _rank(), _world_size()
    final = directory / STEP.format(state["step"])
    temporary = directory / f".writing-{final.name}"
    if _from_rank_0(lambda: not damage_of(final)):
        return final
    _together(rank == 0, lambda: _fresh(temporary), "")
    layout = optimizer.layout
    if rank == 0:
        state = state | {
            "world_size": world_size,
            "shapes": {name: list(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)},
            "buffers": [name for name, _ in network.named_buffers()],
        }

    def write() -> dict[str, Any]:
        tensors = pieces_of(optimizer, rank, world_size) | own_of(network, None if queue is None else queue.embeddings)
        tensors |= beside_of(beside or {}, rank, world_size)
        tensors |= {} if clusters is None else clusters.own(rank)
        bad = [name for name, values in tensors.items() if not torch.isfinite(values).all()]
        if bad:  # the last good checkpoint must be one
            raise OSError(f"{len(bad)} tensors are not finite, {bad[0]} first")
        names = [rank_file(rank)] + (["state.json"] if rank == 0 else [])
        save_file(tensors, temporary / names[0])
        if rank == 0:
            (temporary / "state.json").write_text(json.dumps(state, indent=1))
        for name in names:
            sync(temporary / name)
        return {name: fingerprint(temporary / name) for name in names}

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
    """An empty folder; what killed runs left beside it goes."""
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
    """The newest whole checkpoint, the same on all ranks; None if there is none at all.

    say: is told of each newer one that is damaged. Raises CheckpointError if all are. `latest` is for people: a kill
    right before it is replaced must not cost the checkpoint that it would have named.
    """

    names = _from_rank_0(lambda: sorted((path.name for path in directory.glob("step-*")), reverse=True))
    for name in names:
        damage = _from_rank_0(lambda name=name: damage_of(directory / name))
        if not damage:
            return directory / name
        if say is not None:
            say(f"{directory / name} is damaged ({damage}); the one before it is used")
    if names:
        raise CheckpointError(f"{directory}: no checkpoint is whole; move the folder away to start anew")
    return None


def damage_of(checkpoint: Path) -> str:
    """Why a checkpoint is not whole: every file of its manifest, and no other, with its size and SHA-256; '' if it
    is."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        there = {path.name for path in checkpoint.iterdir()}
        if "state.json" not in manifest or there != {*manifest, "manifest.json"}:
            return "its files are not those of its manifest"
        for name, entry in manifest.items():
            if fingerprint(checkpoint / name) != entry:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return "no manifest"
    except DAMAGE as error:
        return f"manifest.json: {' '.join(str(error).split())[:80]}"
    return ""


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return json.loads((checkpoint / "state.json").read_text())


# ---------------------------------------------------------------------------------------------- load
def load_checkpoint(
    checkpoint: Path,
    network: torch.nn.Module,
    optimizer: Any,
    queue: EmbeddingQueue | None,
    clusters: Clusters | None = None,
    beside: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Restore masters, optimizer state, buffers, queue, clusters and what is beside them in place on this rank; returns
    state.json.

    The network's own copy of the parameters follows by `training.zero.publish`. With the saved world size every rank
    gets
    its own batch-norm statistics and queue back, bit for bit; with another one all get the average, and the queue is
    dealt out anew. Raises CheckpointError, with the names, if the network is another one.
    """
    state = read_state(checkpoint)
    layout = optimizer.layout
    own = {name: list(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    buffers = [name for name, _ in network.named_buffers()]
    wrong = sorted(name for name in {*own, *state["shapes"]} if own.get(name) != state["shapes"].get(name))
    wrong += sorted(set(buffers) ^ set(state["buffers"]))
    if wrong:
        names = ", ".join(wrong)
        raise CheckpointError(f"{checkpoint} does not fit this recipe's network: {names}; use another run.directory")
    rank, world_size = _rank(), _world_size()
    try:
        pieces = Pieces(checkpoint, state["world_size"])
        restore(pieces, optimizer)
        restore_own(pieces, network, rank, world_size)
        restore_beside(pieces, beside or {}, rank, world_size)
        if queue is not None:
            queue.load_state_dict({"embeddings": _queue_rows(pieces.own("queue"), rank, world_size)})
        if clusters is not None:
            clusters.restore(pieces, rank, world_size)
    except (KeyError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} lacks {error}; it was made by another program") from None
    return state


def _queue_rows(saved: list[torch.Tensor], rank: int, world_size: int) -> torch.Tensor:
    """This rank's rows [assigning, local, dim] of a queue saved by any number of ranks."""
    if len(saved) == world_size:
        return saved[rank]
    # newest first within each rank, so the ranks' rows are interleaved before they are dealt out again
    return torch.stack(saved, dim=2).flatten(1, 2)[:, rank::world_size].contiguous()


def full_weights(checkpoint: Path, teacher: bool = False) -> dict[str, torch.Tensor]:
    """The network's state dict on the CPU: float32 master parameters, and buffers averaged over the ranks. Of a whole
    checkpoint (`damage_of`). teacher: that of the moving average; CheckpointError where there is none."""
    state = read_state(checkpoint)
    pieces = Pieces(checkpoint, state["world_size"])
    if not teacher:
        return dict(whole(pieces, state["shapes"], state["buffers"]))
    try:
        return dict(whole_teacher(pieces, state["shapes"], state["buffers"]))
    except KeyError:
        raise CheckpointError(f"{checkpoint}: its run had no teacher (swav.teacher.momentum)") from None


# ---------------------------------------------------------------------------------------------- ranks
def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _from_rank_0(ask: Any) -> Any:
    """What rank 0 finds, on all ranks."""
    answer = [ask() if _rank() == 0 else None]
    if _world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    return answer[0]


def _together(mine: bool, act: Any, temporary: Path | str) -> list[Any]:
    """Every rank's result of `act` (None where not `mine`), on all ranks. If one fails all raise NotSaved, and the
    unfinished folder goes."""
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
