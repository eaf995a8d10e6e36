"""The roofline of a device: its measured peak of matrix products and its memory bandwidth, against a network's needs.

Memory traffic limits a ResNet step more than matrix products do, so the share of their peak (MFU) alone does not show
how much faster a step could be. The traffic is an estimate: forward and backward move every output of a convolution
about 22 times (its batch norm, ReLU, sum and their gradients), which fits the fastest published trainings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PASSES = 22  # over each convolution's output, forward and backward
COPIED = {"cuda": 1 << 28, "cpu": 1 << 27}  # bytes, more than any cache holds
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices in the product


@dataclass(frozen=True)
class Work:
    """For one image with all its crops: output elements of convolutions, and multiply-adds of the forward pass."""

    elements: float
    products: float

    @property
    def operations(self) -> float:
        """Floating-point operations: 2 for each multiply-add, and backward has two products for each one of forward."""
        return 6 * self.products

    def traffic(self, itemsize: int) -> float:
        """Bytes moved, an estimate. itemsize: bytes of an element."""
        return self.elements * itemsize * PASSES


def work_of(network: nn.Module, groups: list[tuple[int, int]], device: torch.device) -> Work:
    """The work of a network on one image with the crops `groups`: (views, size in pixels) for each resolution."""
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
    """Measured limits: bytes a second of a copy (read and written), and floating-point operations a second of a matrix
    product."""

    bandwidth: float
    peak_flops: float


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the limits of `device`, with products in `dtype`. Ranks that share a device measure at the same time."""
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * len(source) / seconds_of(lambda: target.copy_(source), device)
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return Ceilings(bandwidth, 2 * side**3 / seconds_of(lambda: a @ b, device))


def roofline(images_per_second: float, work: Work, itemsize: int, limits: Ceilings) -> dict[str, Any]:
    """A rate against the rates that `limits` (of all ranks together) allow. itemsize: bytes of an element.

    peak_flops, bandwidth                     the measured limits: operations and bytes a second
    flops_per_second                          operations a second of the network
    flops_per_image, bytes_per_image          its work
    intensity                                 operations for each byte moved
    mfu                                       share of peak_flops
    images_by_products, images_by_bandwidth   images a second at each limit; `bound` names the lower one
    share_of_roofline                         share of the lower one
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
    """Seconds of `act`, the shortest of ten runs."""
    times = []
    for _ in range(10):
        finish(device)
        begun = time.perf_counter()
        act()
        finish(device)
        times.append(time.perf_counter() - begun)
    return min(times)


def finish(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
