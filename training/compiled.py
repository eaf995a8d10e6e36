"""torch.compile of a network: one static graph for each shape of its inputs, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.sizes.trial import channels_of
from model.swav import SwAV
from model.teacher import arithmetic

MOST_APART = 0.5  # a gradient in bfloat16 that is summed in another order stays far below
GRAPHS = 64  # of all compiled modules together; with torch's limit of 8, further shapes would run eagerly


def compile_network(network: SwAV, backend: Any = "inductor", cuda_graphs: bool = False) -> None:
    """Compile backbone and projection head, in place. Code is generated at the first call with each shape.

    backend: of torch.compile, a name or a function. cuda_graphs: on a GPU, inductor replays each graph; its tensors
    live until the network's next forward pass.

    Graphs are static: without `dynamic=False`, torch makes the graph of the second resolution for any shape, which is
    slower.
    """
    import torch._dynamo.config  # takes seconds, and most runs do not compile

    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    options = {"triton.cudagraphs": True} if cuda_graphs else None
    network.backbone.compile(backend=backend, dynamic=False, options=options)
    network.projection_head.compile(backend=backend, dynamic=False, options=options)
    if cuda_graphs:
        network.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())


def compile_and_check(
    network: SwAV,
    groups: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    cuda_graphs: bool = False,
) -> None:
    """`compile_network`, and compare the backbone's gradients with those from before: compilers have made zeros of them
    without a word. Weights, buffers and torch's random state do not change. Collective.

    groups: (images of this rank, size in pixels) of each resolution; dtype: of the crops.

    Raises ValueError, one line, if a gradient is further than `MOST_APART` of its length from the plain one. A network
    with dropout or drop path may be as much further as two draws of the plain one are apart, twice: compiled, it draws
    other numbers.
    """
    backbone: Any = network.backbone
    groups = groups if any(one.requires_grad for one in backbone.parameters()) else ()
    buffers = [(buffer, buffer.clone()) for buffer in backbone.buffers()]
    plain = [[_gradient(backbone, group, dtype, device, draw) for draw in (1, 2)] for group in groups]
    compile_network(network, cuda_graphs=cuda_graphs)
    for (_, size), (expected, other), group in zip(groups, plain, groups, strict=True):
        found = _gradient(backbone, group, dtype, device, draw=1)
        apart, by_draws = (float((one - expected).norm() / expected.norm()) for one in (found, other))
        if not apart <= MOST_APART + 2 * by_draws and bool(expected.any()):
            raise ValueError(
                f"engine.compile: torch {torch.__version__} compiles this backbone wrongly: at {size} pixels its "
                f"gradient is {apart:.0%} of the plain gradient's length away from that; leave it false"
            )
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)


def _gradient(
    backbone: Any, group: tuple[int, int], dtype: torch.dtype, device: torch.device, draw: int
) -> Float[Tensor, " parameters"]:
    """The gradient of all trained parameters for noise, the same at each call. draw: the seed of dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.randn(group[0], channels_of(backbone), *[group[1]] * 2, device=device, dtype=dtype)
        weights = torch.randn(group[0], backbone.feature_dim, device=device)
        torch.manual_seed(draw)
        with arithmetic(device, dtype):
            features = backbone(images.contiguous(memory_format=torch.channels_last))
        (features * weights).sum().backward()
    gradients = [one.grad.ravel().float() for one in backbone.parameters() if one.grad is not None]
    for one in backbone.parameters():
        one.grad = None
    return torch.cat(gradients)


def in_whole_batches(
    function: Callable[[Float[Tensor, "rows 3 height width"]], Tensor], batch: int
) -> Callable[[Float[Tensor, "rows 3 height width"]], Tensor]:
    """`function`, which treats each image by itself, such that it is given `batch` images or more: the images of a
    shorter batch are repeated. So the last batch of a data set needs no other graph."""

    def whole(images: Tensor) -> Tensor:
        copies = -(-batch // len(images))
        return function(torch.cat([images] * copies)[:batch] if copies > 1 else images)[: len(images)]

    return whole
