"""crops.custom: the user's own change of crops, after all others and before normalization.

The function gets the crops of one group in this process's batch, [n, channels, size, size] float32 on the device that
they go to, in which 1 is white, and a torch.Generator. It returns as many of the same size. The generator is keyed by
seed, epoch, position and group, so that a resumed run makes the same crops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from common.own_code import own_function, reason_of
from pipeline.batch import Request
from pipeline.crops import Crops
from pipeline.dataset.table import DatasetError
from pipeline.draw import CUSTOM, philox

Batches = Iterator[tuple[Request, list[Tensor]]]
Images = Float[Tensor, "n channels size size"]


@dataclass(frozen=True)
class Custom:
    """A user's function for one group: `count` views from `first` on of those that share a resolution.

    resolution: its place in `Crops.groups`; view: the group's first view among all.
    """

    name: str
    function: Callable[..., Any]
    resolution: int
    first: int
    count: int
    view: int

    def __call__(self, crops: Images, generator: torch.Generator) -> Images:
        """The changed crops. Raises DatasetError, one line, for an error in the function or another result."""
        words, shape = f"crops.custom={self.name}", list(crops.shape)
        try:
            changed = self.function(crops, generator)
        except Exception as error:
            raise DatasetError(f"{words}: {reason_of(error)}") from None
        if not isinstance(changed, Tensor) or list(changed.shape) != shape or not changed.is_floating_point():
            given = f"{changed.dtype} {list(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            raise DatasetError(f"{words}: the function returned {given}, expected a tensor of float32 {shape}")
        return changed


def custom_changes(crops: Crops, device: torch.device) -> list[Custom]:
    """The user's functions that the crops name, imported and tried on two crops of noise. Raises ValueError, one line.

    To be called for settings that the user gives alone: it runs the code that they name.
    """
    customs = []
    for resolution, (size, members) in enumerate(crops.groups):
        first = 0
        for (_, own), views in groupby(members, key=lambda view: (crops.views[view], crops.changes[view])):
            count = len(list(views))
            if own.custom:
                function = own_function(own.custom, f"crops.custom={own.custom}")
                custom = Custom(own.custom, function, resolution, first, count, members[first])
                generator = torch.Generator(device).manual_seed(0)
                noise = torch.rand(2, len(crops.mean), size, size, generator=generator, device=device)
                if not custom(noise.to(memory_format=torch.channels_last), generator).isfinite().all():
                    raise DatasetError(f"crops.custom={own.custom}: of crops of noise it returned NaN or infinity")
                customs.append(custom)
            first += count
    return customs


def unnormalized(crops: Crops) -> Crops:
    """The crops with values in which 1 is white, as the functions take them."""
    channels = len(crops.mean)
    return replace(crops, mean=(0.0,) * channels, std=(1.0,) * channels)


def changed(
    batches: Batches,
    customs: list[Custom],
    crops: Crops,
    seed: int,
    before: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Batches:
    """Batches of `unnormalized` crops after the functions and normalization, in `dtype` on `device`.

    before: how many samples this process's first one is before the position after the batch.
    """
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (crops.mean, crops.std))
    for request, groups in batches:
        rows = len(request.rows)
        groups = [group.to(device, torch.float32, copy=True) for group in groups]
        for custom in customs:
            part = groups[custom.resolution][custom.first * rows : (custom.first + custom.count) * rows]
            generator = torch.Generator(device).manual_seed(
                key_of(seed, request.epoch, request.samples - before, custom.view)
            )
            part.copy_(custom(part.clone(), generator))
        yield request, [((group - mean) / std).to(dtype, memory_format=torch.channels_last) for group in groups]


def key_of(seed: int, epoch: int, position: int, view: int) -> int:
    """64 bits for the generator of a group of crops: of its first view, and of the position of the first sample."""
    low, high, *_ = philox((position & 0xFFFFFFFF, position >> 32, view, CUSTOM), key=(seed, epoch)).tolist()
    return low | high << 32
