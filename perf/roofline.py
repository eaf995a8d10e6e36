"""What a device could do at most: matrix products and memory traffic, both measured on it, against a network's needs.

A step of a ResNet is bound by memory traffic more than by products, so the share of the peak of matrix products (MFU)
alone does not tell how far is left. The traffic is an estimate: every output of a convolution is moved about 22 times
in forward and backward (its batch norm, ReLU, sum and their gradients), which fits the best published trainings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PASSES = 22  # over each convolution's output, forward and backward
COPIED = {"cuda": 1 << 28, "cpu": 1 << 27}  # bytes: more than any cache holds
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices that are multiplied


@dataclass(frozen=True)
class Work:
    """Of one image with all its crops: elements that convolutions put out, and multiply-adds of the forward pass."""

    elements: float
    products: float

    @property
    def operations(self) -> float:
        """Floating-point operations forward and backward, which has two products for each."""
        return 6 * self.products

    def traffic(self, itemsize: int) -> float:
        """Bytes moved, about."""
        return self.elements * itemsize * PASSES


def work_of(network: nn.Module, groups: list[tuple[int, int]], device: torch.device) -> Work:
    """What a network needs for an image of which it sees `groups` of (views, size in pixels)."""
    elements, products = 0, 0

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal elements, products
        weight = module.weight
        assert isinstance(weight, Tensor)
        products += output.numel() * weight[0].numel()
        elements += output.numel() if isinstance(module, nn.Conv2d) else 0

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network.eval()
    for views, size in groups:
        with torch.no_grad():
            network(torch.zeros(views, 3, size, size, device=device))
    network.train()
    for hook in hooks:
        hook.remove()
    return Work(float(elements), float(products))


@dataclass(frozen=True)
class Ceilings:
    """What was measured: bytes a second of a copy (read and written), and floating-point operations a second of a
    product of matrices in `dtype`."""

    bandwidth: float
    peak_flops: float


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Of this device, by this process. Ranks that share a machine measure at the same time."""
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * len(source) / seconds_of(lambda: target.copy_(source), device)
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return Ceilings(bandwidth, 2 * side**3 / seconds_of(lambda: a @ b, device))


def roofline(images_per_second: float, work: Work, itemsize: int, limits: Ceilings) -> dict[str, Any]:
    """How far a rate is below what `limits` (of all ranks together) would allow.

    peak_flops, bandwidth   the measured limits, operations and bytes a second
    flops_per_second        what the network computes
    intensity               operations for each byte moved
    mfu                     of peak_flops; `share_of_roofline` of the lower of both ceilings, which `bound` names
    """
    by_products = limits.peak_flops / work.operations
    by_memory = limits.bandwidth / work.traffic(itemsize)
    ceiling = min(by_products, by_memory)
    return {
        "peak_flops": limits.peak_flops,
        "bandwidth": limits.bandwidth,
        "flops_per_second": images_per_second * work.operations,
        "flops_per_image": work.operations,
        "bytes_per_image": work.traffic(itemsize),
        "intensity": work.operations / work.traffic(itemsize),
        "mfu": images_per_second / by_products,
        "share_of_roofline": images_per_second / ceiling,
        "images_by_products": by_products,
        "images_by_bandwidth": by_memory,
        "bound": "matrix products" if by_products < by_memory else "memory bandwidth",
    }


def seconds_of(act: Callable[[], Any], device: torch.device) -> float:
    """The shortest of ten runs."""
    found = []
    for _ in range(10):
        finish(device)
        begun = time.perf_counter()
        act()
        finish(device)
        found.append(time.perf_counter() - begun)
    return min(found)


def finish(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
