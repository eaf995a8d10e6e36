"""The tensors of a checkpoint by name: what each rank writes of them, and how any number of ranks reads them.

Every rank writes one file, `rank-00000.safetensors` and so on. The first part of a tensor's name says what it is:

    own/NAME               a tensor that each rank has its own values of; every rank writes it
    alike/NAME             a tensor that is the same on all ranks; it lies in one rank's file
    KIND/PARAMETER/START   elements of the flattened PARAMETER from element START on: `master` its float32 values, any
                           other KIND a state of the optimizer (masters.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.state import ALIKE, OWN


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one line."""


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def tensors_to_write(tensors: Mapping[str, Tensor], rank: int, world_size: int) -> dict[str, Tensor]:
    """CPU copies of the tensors that rank `rank` writes: its own ones, and every world_size-th of the common ones.

    tensors: all tensors of this rank; the common ones are in the same order on all ranks.
    """
    alike = [name for name in tensors if name.startswith(ALIKE)]
    left_to_others = set(alike) - set(alike[rank::world_size])
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
        if name not in left_to_others
    }


class FileTensors(Mapping[str, Tensor]):
    """Tensors by name, each read from its safetensors file when it is asked for."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class SavedTensors:
    """All tensors of a checkpoint of `world_size` ranks, opened for reading.

    ranks: for each rank that saved, its own/ tensors and all alike/ tensors by full name (model.state.RankTensors).

    Raises CheckpointError where a rank's file is missing or damaged.
    """

    def __init__(self, checkpoint: Path, world_size: int) -> None:
        self.checkpoint = checkpoint
        self._slices: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}  # (kind, parameter): start, length
        alike: dict[str, Any] = {}
        own: list[dict[str, Any]] = []
        for rank in range(world_size):
            try:
                file = safe_open(checkpoint / rank_file(rank), "pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{checkpoint}: {rank_file(rank)} cannot be read ({error})") from None
            names = list(file.keys())
            own.append({name: file for name in names if name.startswith(OWN)})
            alike |= {name: file for name in names if name.startswith(ALIKE)}
            for name in names:
                if not name.startswith((OWN, ALIKE)):
                    try:
                        self._add_slice(file, name)
                    except (ValueError, LookupError):
                        problem = f"{name[:80]!r} is not a part of a parameter; another program wrote it"
                        raise CheckpointError(f"{checkpoint}: {rank_file(rank)}: {problem}") from None
        self.ranks = [FileTensors(files | alike) for files in own]

    def _add_slice(self, file: Any, name: str) -> None:
        kind, _, rest = name.partition("/")
        parameter, _, start = rest.rpartition("/")
        length = file.get_slice(name).get_shape()[0]
        self._slices.setdefault((kind, parameter), []).append((int(start), length, file, name))

    def kinds(self) -> list[str]:
        """The kinds of values that any parameter has, masters first."""
        return sorted({kind for kind, _ in self._slices}, key=lambda kind: (kind != "master", kind))

    def has(self, kind: str, parameter: str) -> bool:
        """Whether there are values of this kind for the parameter."""
        return (kind, parameter) in self._slices

    def read(self, kind: str, parameter: str, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of the flattened parameter, [length]. Raises KeyError where some are
        missing."""
        parts: list[Tensor] = []
        position = start
        slices = sorted(self._slices.get((kind, parameter), []), key=lambda entry: entry[:2])
        for begin, size, file, name in slices:
            low, high = max(position, begin), min(start + length, begin + size)
            if low == position and high > low:
                parts.append(file.get_slice(name)[low - begin : high - begin])
                position = high
        if position != start + length:
            raise KeyError(f"{kind} of {parameter} from element {position}")
        return torch.cat(parts) if parts else torch.empty(0)

    def number(self, kind: str, parameter: str) -> Tensor:
        """The one number of this kind that is stored for a parameter, []."""
        _, _, file, name = self._slices[kind, parameter][0]
        return file.get_tensor(name)[0]
