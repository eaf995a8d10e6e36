"""Reads tensors by name from files of any library. Nothing but tensors is unpickled."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.weights.programs import read_program

INDEX = ".safetensors.index.json"
OTHER_STATE = {  # entries of checkpoints that hold tensors, but no weights
    *("optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "opt", "scaler", "amp", "loss_scaler"),
    *("lr_scheduler", "lr_schedulers", "scheduler", "loops", "callbacks", "message_hub", "rng_state", "dino_loss"),
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name: safetensors, alone or with an index of several files, or what torch saved (tensors, TorchScript,
    a program of torch.export); or a folder with one.

    Names of nested mappings are joined by dots: {"state_dict": {"fc.bias": ...}} gives state_dict.fc.bias. Raises
    ValueError, one line.
    """
    path = _in_folder(path) if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"weights {path}: no such file")
    try:
        if path.name.endswith(INDEX):
            content: Any = _indexed(path)
        elif path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = read_program(path)
            # A Namespace holds the arguments of a program, as in the checkpoints of DINO and MAE: plain values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = content or torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refused(path, str(error))) from None
    except Exception as error:  # of many kinds, depending on which byte of the file is wrong
        if str(error).startswith("weights "):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise ValueError(f"weights {path}: unreadable: {reason}") from error
    tensors = dict(_tensors(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        raise ValueError(f"weights {path}: no tensors by name, at the top or in a mapping")
    return tensors


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Raises ValueError, one line, if a value is infinite or NaN; it names the first tensor and counts them."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(
            f"{source}: {bad[0]}{more} of {len(weights)} tensors hold infinite or NaN values; the run that wrote "
            "them diverged: take an earlier checkpoint"
        )


def _refused(path: Path, error: str) -> str:
    if "Unsupported global" not in error and "GLOBAL" not in error:
        return f"weights {path}: unreadable: neither safetensors nor a torch file of tensors alone"
    return (  # torch's message advises to unpickle the file anyway
        f"weights {path}: unreadable: it holds Python objects besides tensors, which are not unpickled; where it was "
        "written, save its state dict alone: torch.save(model.state_dict(), FILE)"
    )


def _in_folder(folder: Path) -> Path:
    for name in (f"model{INDEX}", "model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"weights {folder}: no model.safetensors in this folder, nor an index of several; name the file")


def _indexed(index: Path) -> dict[str, Tensor]:
    """The tensors of all files of an index, as Hugging Face's libraries write it."""
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    if not all(isinstance(name, str) and Path(name).name == name for name in files):
        raise ValueError(f"weights {index}: its files must lie beside it")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"weights {index}: {missing[0]} is missing ({len(missing)} of {len(files)} files)")
    return {key: value for name in files for key, value in load_file(index.parent / name).items()}


def _tensors(node: Mapping[Any, Any], above: str = "") -> Iterable[tuple[str, Tensor]]:
    for key, value in node.items():
        if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized:
            yield f"{above}{key}", value.detach()
        elif isinstance(value, Mapping) and key not in OTHER_STATE:
            yield from _tensors(value, f"{above}{key}.")
