"""A teacher for the codes: codes are computed from the scores of a moving average of the network.

The average changes more slowly than the network that predicts its codes. A ViT-S/16 on ImageNet reaches a linear
accuracy of 76.0 % with a teacher and 73.5 % without (Caron et al., DINO, arXiv 2104.14294, appendix "relation to SwAV"
and table 2). As in that appendix, all of the network is averaged, the prototypes too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.state import ALIKE, OWN, RankTensors, buffer_tensors, load_buffers, rank_mean
from model.swav import SwAV
from model.views import select_views

PREFIX = "teacher/"  # of its tensors' names in a checkpoint


class Teacher:
    """The moving average of `network`, which starts as a copy of it and never takes a gradient.

    assigning: the views that give codes, numbered as in the network's scores.
    dtype: of the crops; float16 and bfloat16 compute by autocast. The average itself is float32 at any precision.

    Batch norm takes its statistics from the views that the teacher sees, and its running statistics are separate from
    the network's. Dropout and stochastic depth are off.
    """

    def __init__(self, network: SwAV, assigning: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.network = copy.deepcopy(network).float().requires_grad_(False).eval()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = True  # not module.train(), which would change its children too
        self.assigning, self.dtype = list(assigning), dtype

    @torch.no_grad()
    def __call__(
        self,
        crops: Sequence[Float[Tensor, "views_batch 3 height width"]],
        batch_size: int,
        queued: Float[Tensor, "assigning length dim"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings [assigning, batch, dim], scores [assigning, batch, prototypes] and, with `queued`, its scores
        [assigning, length, prototypes]: as the network returns them, but of the assigning views alone.

        crops: the network's input, one tensor per resolution, view-major; views that give no codes are not computed.
        """
        return of_views(self.network, crops, batch_size, queued, self.assigning, self.dtype)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch feature_dim"]:
        """The backbone's features of `images`, for evaluation."""
        with arithmetic(images.device, self.dtype):
            return self.network(images.to(self.dtype))

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """After a step: average = momentum * average + (1 - momentum) * network, then prototypes of unit length.

        network: has whole parameters, so not at ZeRO stage 3. Buffers are not averaged.
        """
        average: list[Tensor] = [*self.network.parameters()]
        present = [p.detach().to(a) for a, p in zip(average, network.parameters(), strict=True)]
        torch._foreach_lerp_(average, present, 1.0 - momentum)
        self.network.prototypes.normalize()

    @torch.no_grad()
    def become(self, network: nn.Module) -> None:
        """Take over the network's parameters and batch-norm statistics. network: as for `follow`."""
        self.follow(network, 0.0)
        for own, present in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(present)

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameters, the same on all ranks, and batch-norm statistics, which differ between ranks."""
        parameters = {f"{ALIKE}{PREFIX}{name}": parameter for name, parameter in self.network.named_parameters()}
        return parameters | buffer_tensors(self.network, OWN + PREFIX)

    @torch.no_grad()
    def load_state_tensors(self, saved: RankTensors, rank: int = 0, world_size: int = 1) -> None:
        """Continues from tensors of any number of ranks. Raises KeyError if they hold no teacher."""
        for name, parameter in self.network.named_parameters():
            parameter.copy_(saved[0][f"{ALIKE}{PREFIX}{name}"])
        load_buffers(self.network, saved, rank, world_size, OWN + PREFIX)


def arithmetic(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which a float32 teacher computes in `dtype`."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def of_views(
    network: SwAV,
    crops: Sequence[Float[Tensor, "views_batch 3 height width"]],
    batch_size: int,
    queued: Tensor | None,
    views: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A teacher's embeddings, scores and queue scores of `views` alone, in their order; see `Teacher.__call__`."""
    chosen, order = only_views(crops, batch_size, views)
    with arithmetic(chosen[0].device, dtype):
        embeddings, scores, queue_scores, _ = network(chosen, batch_size, queued)
    if order != list(views):
        places = [order.index(view) for view in views]
        embeddings, scores = select_views(embeddings, places), select_views(scores, places)
    return embeddings, scores, queue_scores


def teacher_weights(saved: RankTensors, parameters: Iterable[str], buffers: Iterable[str]) -> dict[str, Tensor]:
    """The state dict of a saved teacher's network: parameters, and buffers averaged over the ranks.

    parameters, buffers: the network's names. Raises KeyError where no teacher was saved.
    """
    weights = {name: saved[0][f"{ALIKE}{PREFIX}{name}"] for name in parameters}
    return weights | {name: rank_mean(saved, f"{OWN}{PREFIX}{name}") for name in buffers}


def momentum_at(step: int, steps: int, first: float, final: float) -> float:
    """The teacher's momentum after `step` (from 0) of `steps`: a cosine from `first` at step 0 to `final` at `steps`
    (DINO, section 3.1: 0.996 to 1)."""
    return final - (final - first) * (1 + math.cos(math.pi * step / steps)) / 2


def only_views(
    crops: Sequence[Float[Tensor, "views_batch 3 height width"]], batch_size: int, views: Sequence[int]
) -> tuple[list[Tensor], list[int]]:
    """The crops of `views` alone, one tensor per resolution, and the order of the views in them.

    crops: one tensor per resolution, view-major; views are numbered from the first resolution to the last.
    """
    chosen: list[Tensor] = []
    order: list[int] = []
    first = 0
    for group in crops:
        count = len(group) // batch_size
        here = [view for view in range(first, first + count) if view in views]
        each = group.split(batch_size)
        if here:
            chosen.append(group if len(here) == count else torch.cat([each[view - first] for view in here]))
        order, first = order + here, first + count
    return chosen, order
