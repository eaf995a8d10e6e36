"""Checkpoints: safetensors and JSON, whole or not there at all.

A checkpoint is the folder `checkpoints/step-000001234` with

    network.safetensors    parameters and buffers by name, batch-norm statistics averaged over the ranks
    optimizer.safetensors  momentum by parameter name
    ranks.safetensors      what differs between ranks, stacked [world_size, ...]: batch-norm statistics, queue
    state.json             step, position, ledger, world size, configuration
    manifest.json          size and SHA-256 of the others; written last

It is written under a temporary name, every file and the folder are synced to disk, then it is renamed, and `latest`
is replaced after that. A kill at any point leaves the previous checkpoint in charge.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from launch.cluster import Cluster
from model.queue import EmbeddingQueue

STEP = "step-{:09d}"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one line."""


def save_checkpoint(
    directory: Path,
    state: dict[str, Any],
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    queue: EmbeddingQueue | None,
    keep: int,
) -> Path:
    """Save everything as `directory/step-...`; to be called on all ranks at once, rank 0 writes.

    state: JSON values, with "step". Returns the checkpoint's path once it is on disk and `latest` names it.
    """
    ranks = _all_ranks(_statistics(network) | ({"queue": queue.embeddings} if queue is not None else {}))
    final = directory / STEP.format(state["step"])
    if dist.get_rank() == 0 and not is_whole(final):
        tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        tensors |= {name: ranks[name].double().mean(0).to(ranks[name].dtype) for name in ranks if name in tensors}
        files = {
            "network.safetensors": tensors,
            "optimizer.safetensors": _momentum(network, optimizer),
            "ranks.safetensors": ranks,
        }
        _write(directory, final, files, state | {"world_size": dist.get_world_size()})
        _forget_old(directory, keep)
    dist.barrier()
    return final


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint: the one `latest` names, or if that is damaged the newest one that is not."""
    named = directory / "latest"
    candidates = sorted(directory.glob("step-*"), reverse=True)
    if named.is_file():
        first = directory / named.read_text().strip()
        candidates = [first, *(c for c in candidates if c != first)]
    for candidate in candidates:
        if is_whole(candidate):
            return candidate
    if candidates:
        raise CheckpointError(f"{directory}: no checkpoint is whole; move the folder away to start anew")
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether every file is there with the size and SHA-256 of the manifest."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        return all(_fingerprint(checkpoint / name) == entry for name, entry in manifest.items())
    except (OSError, ValueError):
        return False


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return json.loads((checkpoint / "state.json").read_text())


def full_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, whole, on the CPU; batch-norm statistics averaged over the ranks."""
    return load_file(checkpoint / "network.safetensors")


def load_checkpoint(
    checkpoint: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    queue: EmbeddingQueue | None,
    cluster: Cluster,
) -> dict[str, Any]:
    """Restore network, optimizer and queue in place on this rank; returns state.json. Needs no process group.

    With the saved world size every rank gets its own batch-norm statistics and queue back, bit for bit; with another
    one all get the average, and the queue is dealt out anew. Raises CheckpointError, with the names, if the network
    is another one.
    """
    state = read_state(checkpoint)
    saved, ranks = load_file(checkpoint / "network.safetensors"), load_file(checkpoint / "ranks.safetensors")
    own = network.state_dict()
    wrong = sorted(set(saved) ^ set(own)) + sorted(k for k in set(saved) & set(own) if saved[k].shape != own[k].shape)
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        names = ", ".join(wrong[:10]) + more
        raise CheckpointError(f"{checkpoint} does not fit this recipe's network: {names}; use another run.directory")
    same_world = state["world_size"] == cluster.world_size
    if same_world:
        saved |= {name: ranks[name][cluster.rank] for name in ranks if name in own}
    network.load_state_dict(saved)
    parameters = dict(network.named_parameters())
    for name, momentum in load_file(checkpoint / "optimizer.safetensors").items():
        optimizer.state[parameters[name]]["momentum_buffer"] = momentum.to(parameters[name])
    if queue is not None:
        rows = ranks["queue"]  # [world, assigning, local, dim]
        if same_world:
            rows = rows[cluster.rank]
        else:
            rows = rows.permute(1, 2, 0, 3).flatten(1, 2)[:, cluster.rank :: cluster.world_size].contiguous()
        queue.load_state_dict({"embeddings": rows})
    return state


# ---------------------------------------------------------------------- what is saved
def _statistics(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Floating-point buffers: the running statistics of batch norm, each rank's own."""
    return {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}


def _all_ranks(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every rank's tensors, stacked on the CPU: name -> [world_size, ...]. One all-gather for all of them."""
    if not tensors:
        return {}
    flat = torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors.values()])
    gathered = flat.new_empty(dist.get_world_size(), flat.numel())
    dist.all_gather(list(gathered.unbind(0)), flat)
    parts = gathered.cpu().split([tensor.numel() for tensor in tensors.values()], dim=1)
    return {
        name: part.reshape(-1, *tensor.shape).to(tensor.dtype).contiguous()
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def _momentum(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in network.named_parameters()}
    return {
        name: state["momentum_buffer"].detach().cpu().contiguous()
        for name, state in states.items()
        if "momentum_buffer" in state
    }


# ---------------------------------------------------------------------- how it gets to disk
def _write(directory: Path, final: Path, files: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".writing-{final.name}"
    for leftover in directory.glob(".writing-*"):
        shutil.rmtree(leftover)
    temporary.mkdir()
    for name, tensors in files.items():
        save_file(tensors, temporary / name)
    (temporary / "state.json").write_text(json.dumps(state, indent=1))
    manifest = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in [*temporary.iterdir(), temporary]:
        sync(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync(directory)
    write_atomically(directory / "latest", final.name + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: either the old or the new contents are there, also after a power cut."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget_old(directory: Path, keep: int) -> None:
    for old in sorted(directory.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
