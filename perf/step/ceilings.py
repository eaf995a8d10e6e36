"""The limits of a device: bytes a second of a copy, and operations a second of a network's own products.

A library may run a network's convolutions faster than a large square product, so both are measured, in both memory
layouts, and the fastest is the ceiling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from perf.step.roofline import Ceilings, Groups, finish, on_each_product

COPIED = {"cuda": 1 << 28, "cpu": 1 << 27}  # bytes, more than any cache holds
SIDES = {"cuda": (4096, 8192), "cpu": (512, 1024)}  # of the square matrices in the product
OPERATIONS = {"cuda": 3e11, "cpu": 2e8}  # of a product of the network, at least
LAYERS = 4  # of the network that are timed: those with the most operations
RUNS = 10


class Product(NamedTuple):
    """Something that takes `operations` floating-point operations."""

    name: str
    operations: float
    act: Callable[[], Any]


def ceilings(device: torch.device, dtype: torch.dtype, network: nn.Module, groups: Groups) -> Ceilings:
    """Measure the limits of `device`, with products in `dtype`, for a network on the crops `groups` (as for `work_of`).

    Ranks that share a device measure at the same time.
    """
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * len(source) / min(times_of(lambda: target.copy_(source), device))
    peak, noise, name = 0.0, 0.0, ""
    with torch.no_grad():
        for product in (*squares(device, dtype), *layers(device, dtype, network, groups)):
            times = times_of(product.act, device)
            if product.operations / min(times) > peak:
                peak, noise, name = product.operations / min(times), median(times) / min(times) - 1, product.name
    return Ceilings(bandwidth, peak, noise, name)


def squares(device: torch.device, dtype: torch.dtype) -> Iterator[Product]:
    """Products of square matrices."""
    for side in SIDES[device.type]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        yield Product(f"square matrices of {side}", 2 * side**3, partial(torch.mm, a, b))


def layers(device: torch.device, dtype: torch.dtype, network: nn.Module, groups: Groups) -> Iterator[Product]:
    """The network's largest convolutions and linear layers, convolutions in both memory layouts, on inputs of noise."""
    found: dict[tuple[Any, ...], tuple[float, nn.Conv2d | nn.Linear, torch.Size]] = {}

    def remember(module: nn.Conv2d | nn.Linear, given: torch.Tensor, operations: float) -> None:
        found[module.weight.shape, given.shape[1:]] = operations, module, given.shape

    on_each_product(network, groups, device, remember)
    for operations, module, shape in sorted(found.values(), key=lambda entry: -entry[0])[:LAYERS]:
        copies = max(1, math.ceil(OPERATIONS[device.type] / operations))
        given = torch.randn(copies * shape[0], *shape[1:], device=device).to(dtype)
        weight = module.weight.detach().to(dtype)
        name = f"{type(module).__name__} {'x'.join(map(str, weight.shape))}"
        if isinstance(module, nn.Linear):
            yield Product(name, copies * operations, partial(F.linear, given, weight))
            continue
        options = module.stride, module.padding, module.dilation, module.groups
        for layout in (torch.contiguous_format, torch.channels_last):
            x, w = given.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
            yield Product(name, copies * operations, partial(F.conv2d, x, w, None, *options))


def times_of(act: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of each of RUNS runs, after one that is not counted."""
    act()
    times = []
    for _ in range(RUNS):
        finish(device)
        begun = time.perf_counter()
        act()
        finish(device)
        times.append(time.perf_counter() - begun)
    return times
