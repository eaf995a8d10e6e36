"""Loads weights from files with swave's key names or the published ones. A file that does not fit is an error.

    swave        backbone.conv1.weight   projection_head.0.weight   prototypes.weight
    published    conv1.weight            projection_head.0.weight   prototypes.weight

Published files put `module.` in front of every key. Their several heads of prototypes (DeepCluster-v2, SeLa-v2) are
prototypes.prototypes0.weight, ...; in swave they are one matrix, head after head.
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
    """Load all weights of a file into a SwAV network or a bare backbone; on an error the network does not change.

    path: safetensors (by its suffix) or a torch file, read with `weights_only=True`. The weights are at the top or
        under `state_dict`, with swave's key names or the published ones.
    backbone_only: do not change projection head and prototypes. A bare backbone implies it.

    Values are not changed. Published prototypes were saved one update after their normalization: call
    `network.prototypes.normalize()` before training continues from them.

    Raises ValueError, one line, if the file is missing or unreadable, or if keys are missing, unexpected or of another
    shape; the line names all of them.
    """
    take_weights(network, read_weights(Path(path)), f"weights {path}", backbone_only)


def take_weights(
    network: nn.Module, weights: Mapping[str, Tensor], source: str = "weights", backbone_only: bool = False
) -> None:
    """`load_weights` from tensors by name instead of a file. source: their name in errors."""
    backbone = getattr(network, "backbone", None)
    bare = not isinstance(backbone, nn.Module)
    expected = {(_BACKBONE if bare else "") + key: value for key, value in network.state_dict().items()}
    given = swave_names(weights)
    if bare or backbone_only:
        expected = {key: value for key, value in expected.items() if key.startswith(_BACKBONE)}
        given = {key: value for key, value in given.items() if not key.startswith(_HEADS)}

    reshaped = [
        f"{key} {list(given[key].shape)} for {list(expected[key].shape)}"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    faults = {
        "missing keys": [key for key in expected if key not in given],
        "unexpected keys": [key for key in given if key not in expected],
        "wrongly shaped": reshaped,
    }
    if any(faults.values()):
        texts = [f"{len(keys)} {fault}: {', '.join(keys)}" for fault, keys in faults.items() if keys]
        raise ValueError(f"{source} do not fit the network: {'; '.join(texts)}")
    # No key is missing; strict=False only because a backbone alone has no heads.
    values = {key.removeprefix(_BACKBONE) if bare else key: given[key] for key in expected}
    network.load_state_dict(values, strict=False)


def published_names(state_dict: Mapping[str, Tensor], heads: int = 1) -> dict[str, Tensor]:
    """The tensors of a network under the published names (golden/state_dict_shapes.json), without `module.`.

    heads: of prototypes.
    """
    named = {key.removeprefix(_BACKBONE): value for key, value in state_dict.items()}
    if heads > 1:
        for head, weight in enumerate(named.pop("prototypes.weight").chunk(heads)):
            named[f"prototypes.prototypes{head}.weight"] = weight.contiguous()
    return named


def heads_of(state_dict: Mapping[str, Tensor]) -> int:
    """Number of heads of prototypes in a file with published names; 1 if they are one matrix."""
    return max(1, sum(bool(_HEAD.fullmatch(key.removeprefix("module."))) for key in state_dict))


def swave_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under swave's names. In a file with published names, all keys but those of the heads
    belong to the backbone."""
    plain = {key.removeprefix("module."): value for key, value in state_dict.items()}
    parts = {int(match[1]): key for key in plain if (match := _HEAD.fullmatch(key))}
    if parts:
        plain["prototypes.weight"] = torch.cat([plain.pop(parts[head]) for head in sorted(parts)])
    if any(key.startswith(_BACKBONE) for key in plain):
        return plain
    return {key if key.startswith(_HEADS) else _BACKBONE + key: value for key, value in plain.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors or torch file, at its top or under `state_dict`; never unpickles objects.

    Raises ValueError, one line.
    """
    if not path.is_file():
        raise ValueError(f"weights {path}: no such file")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's message advises to unpickle the file anyway
        raise ValueError(f"weights {path}: unreadable: neither safetensors nor a torch file of tensors alone") from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"weights {path}: unreadable: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights {path}: no tensors by name, at the top or under 'state_dict'")
    return dict(content)
