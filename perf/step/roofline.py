"""The roofline of a device: its measured peak of matrix products and its memory bandwidth, against a network's needs.

Memory traffic limits a ResNet step more than matrix products do, so the share of their peak (MFU) alone does not show
how much faster a step could be. The traffic is an estimate: forward and backward move every output of a convolution
about 22 times (its batch norm, ReLU, sum and their gradients), which fits the fastest published trainings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PASSES = 22  # over each convolution's output, forward and backward

Groups = list[tuple[int, int]]  # crops of an image: (views, size in pixels) for each resolution


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


def work_of(network: nn.Module, groups: Groups, device: torch.device) -> Work:
    """The work of a network on one image with the crops `groups`."""
    elements, products = 0.0, 0.0

    def count(module: nn.Conv2d | nn.Linear, _input: Tensor, operations: float) -> None:
        nonlocal elements, products
        products += operations / 2
        if isinstance(module, nn.Conv2d):
            elements += operations / 2 / module.weight[0].numel()

    on_each_product(network, groups, device, count)
    return Work(elements, products)


def on_each_product(
    network: nn.Module, groups: Groups, device: torch.device, act: Callable[[Any, Tensor, float], None]
) -> None:
    """Call `act` for each convolution and linear layer of a forward pass of one image, with its input and the number of
    its floating-point operations."""

    def seen(module: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        act(module, inputs[0], 2.0 * output.numel() * weight[0].numel())

    hooks = [m.register_forward_hook(seen) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network.eval()
    for views, size in groups:
        with torch.no_grad():
            network(torch.zeros(views, 3, size, size, device=device))
    network.train()
    for hook in hooks:
        hook.remove()


@dataclass(frozen=True)
class Ceilings:
    """Measured limits (perf/step/ceilings.py): bytes a second of a copy (read and written), and floating-point
    operations a second of the fastest product, `of`. noise: by which share its median was slower than
    its best."""

    bandwidth: float
    peak_flops: float
    noise: float = 0.0
    of: str = ""


def roofline(images_per_second: float, work: Work, itemsize: int, limits: Ceilings) -> dict[str, Any]:
    """A rate against the rates that `limits` (of all ranks together) allow. itemsize: bytes of an element.

    peak_flops, bandwidth                     the measured limits: operations and bytes a second
    peak_of, peak_noise                       the product that has this peak, and its noise as a share
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
        "peak_of": limits.of,
        "peak_noise": limits.noise,
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


def finish(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
