"""torch.compile of a network: one static graph for each shape of its inputs, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.swav import SwAV

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


def in_whole_batches(
    function: Callable[[Float[Tensor, "rows 3 height width"]], Tensor], batch: int
) -> Callable[[Float[Tensor, "rows 3 height width"]], Tensor]:
    """`function`, which treats each image by itself, such that it is given `batch` images or more: the images of a
    shorter batch are repeated. So the last batch of a data set needs no other graph."""

    def whole(images: Tensor) -> Tensor:
        copies = -(-batch // len(images))
        return function(torch.cat([images] * copies)[:batch] if copies > 1 else images)[: len(images)]

    return whole
