"""Weights from files; our key names and the published ones. A file that does not fit is an error.

    ours         backbone.conv1.weight   projection_head.0.weight   prototypes.weight
    published    conv1.weight            projection_head.0.weight   prototypes.weight

Published files put `module.` in front of every key. Where they have several heads of prototypes (DeepCluster-v2,
SeLa-v2) these are prototypes.prototypes0.weight and so on; ours are one matrix, head after head.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_BACKBONE = "backbone."
_HEADS = ("projection_head.", "prototypes.")
_HEAD = re.compile(r"prototypes\.prototypes(\d+)\.weight")


def load_weights(network: nn.Module, path: str | Path, backbone_only: bool = False) -> None:
    """Loads a file's weights into a SwAV network or a bare backbone: all of them, or none and an error.

    path: safetensors (by its suffix) or a torch file, read with `weights_only=True`; the weights lie at the
        top or under `state_dict`, with our names or the published ones.
    backbone_only: leave projection head and prototypes as they are. A bare backbone implies it.

    The values are taken as they are. Published prototypes were saved one update after their normalisation:
    call `network.prototypes.normalize()` before training on from them.

    Raises ValueError, one line, if the file is missing or unreadable, or if keys are missing, unexpected or
    wrongly shaped: it names them all.
    """
    take_weights(network, read_weights(Path(path)), f"weights {path}", backbone_only)


def take_weights(
    network: nn.Module, weights: Mapping[str, Tensor], source: str = "weights", backbone_only: bool = False
) -> None:
    """The same from tensors by name. source: what an error calls them."""
    backbone = getattr(network, "backbone", None)
    bare = not isinstance(backbone, nn.Module)
    wanted = {(_BACKBONE if bare else "") + key: value for key, value in network.state_dict().items()}
    found = our_names(weights)
    if bare or backbone_only:
        wanted = {key: value for key, value in wanted.items() if key.startswith(_BACKBONE)}
        found = {key: value for key, value in found.items() if not key.startswith(_HEADS)}

    reshaped = [
        f"{key} {list(found[key].shape)} for {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    faults = {
        "missing keys": [key for key in wanted if key not in found],
        "unexpected keys": [key for key in found if key not in wanted],
        "wrongly shaped": reshaped,
    }
    if any(faults.values()):
        texts = [f"{len(keys)} {fault}: {', '.join(keys)}" for fault, keys in faults.items() if keys]
        raise ValueError(f"{source} do not fit the network: {'; '.join(texts)}")
    # All keys are known to be there; strict=False only because a backbone alone leaves the heads out.
    values = {key.removeprefix(_BACKBONE) if bare else key: found[key] for key in wanted}
    network.load_state_dict(values, strict=False)


def published_names(state_dict: Mapping[str, Tensor], heads: int = 1) -> dict[str, Tensor]:
    """The same tensors under the published names (golden/state_dict_shapes.json), without `module.`. heads: of
    prototypes."""
    named = {key.removeprefix(_BACKBONE): value for key, value in state_dict.items()}
    if heads > 1:
        for head, weight in enumerate(named.pop("prototypes.weight").chunk(heads)):
            named[f"prototypes.prototypes{head}.weight"] = weight.contiguous()
    return named


def heads_of(state_dict: Mapping[str, Tensor]) -> int:
    """How many heads of prototypes a file in the published layout has, 1 where there is one matrix of them."""
    return max(1, sum(bool(_HEAD.fullmatch(key.removeprefix("module."))) for key in state_dict))


def our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under our names. Ours stay, published ones become ours: there, whatever is not of the heads
    belongs to the backbone."""
    plain = {key.removeprefix("module."): value for key, value in state_dict.items()}
    parts = {int(found[1]): key for key in plain if (found := _HEAD.fullmatch(key))}
    if parts:
        plain["prototypes.weight"] = torch.cat([plain.pop(parts[head]) for head in sorted(parts)])
    if any(key.startswith(_BACKBONE) for key in plain):
        return plain
    return {key if key.startswith(_HEADS) else _BACKBONE + key: value for key, value in plain.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors or torch file, at its top or under `state_dict`; nothing is unpickled.
    Raises ValueError, one line."""
    if not path.is_file():
        raise ValueError(f"weights {path}: no such file")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message advises to unpickle it all the same
        raise ValueError(f"weights {path}: unreadable: neither safetensors nor a torch file of plain tensors") from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"weights {path}: unreadable: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights {path}: no tensors by name, at the top or under 'state_dict'")
    return dict(content)
