"""The golden numbers' folder, and weights filled as tests/golden/README.md describes."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.weights import published_names

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = json.loads((GOLDEN / "state_dict_shapes.json").read_text())


def det(key: str, shape: tuple[int, ...], scale: float) -> Tensor:
    values = np.random.RandomState(zlib.crc32(key.encode()) % 2**32).standard_normal(size=shape)
    return torch.from_numpy((values * scale).astype(np.float32))


@torch.no_grad()
def fill(network: nn.Module) -> None:
    for key, entry in published_names(network.state_dict()).items():
        shape = tuple(entry.shape)
        if key.endswith("num_batches_tracked"):
            continue
        if key.endswith("running_var"):
            entry.copy_(1 + 0.1 * det(key, shape, 1).abs())
        elif key.endswith("running_mean"):
            entry.copy_(det(key, shape, 0.1))
        elif len(shape) == 1:
            entry.copy_(det(key, shape, 0.1) + (1 if key.endswith(".weight") else 0))
        else:
            entry.copy_(det(key, shape, 1 / math.sqrt(math.prod(shape[1:]))))
