"""The teacher of a distillation: a trained network that does not move, and its prototypes.

In SEED (Fang et al., ICLR 2021, arXiv 2101.04731, section 3) the teacher and a smaller student score their embeddings
of an image against anchors, and the student learns the teacher's distribution over them by cross entropy. Here the
anchors are the teacher's prototypes, and its distribution is its code by Sinkhorn-Knopp over the global batch and the
queue (SwAV, equations 3 to 5). The student's prototypes are its own and learn, so its embeddings may be of another
length than the teacher's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from model.state import ALIKE, RankTensors
from model.swav import SwAV
from model.teacher import arithmetic, of_views
from model.weights.recognize import find

PROTOTYPES, MEAN, DIGEST = (f"{ALIKE}distill/{name}" for name in ("prototypes", "mean", "digest"))
_COUNTER = "num_batches_tracked"
_HIDDEN = {
    *("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"),
}


@dataclass(frozen=True)
class HeadSizes:
    """What a file has of a teacher's heads. hidden_dim: of the projection head, 0 for a linear one. embedding_dim: 0
    without a projection head as ours. prototypes: of each of `heads`; 0 without prototypes for these embeddings."""

    hidden_dim: int = 0
    embedding_dim: int = 0
    prototypes: int = 0
    heads: int = 1


def head_sizes(weights: Mapping[str, Tensor]) -> HeadSizes:
    """The sizes of the heads among the tensors of a file of any library."""
    found = find(weights)
    start = "projection_head."
    projection = {key.removeprefix(start): value for key, value in found.heads.items() if key.startswith(start)}
    projection = {key: value for key, value in projection.items() if _COUNTER not in key}
    if projection.keys() in (_HIDDEN, _HIDDEN - {"0.bias"}):  # lightly has no bias before its batch norm
        hidden, dim = len(projection["0.weight"]), len(projection["3.weight"])
    elif projection.keys() == {"weight", "bias"}:
        hidden, dim = 0, len(projection["weight"])
    else:
        return HeadSizes()
    prototypes = found.heads.get("prototypes.weight")
    if prototypes is None or prototypes.ndim != 2 or prototypes.shape[1] != dim:
        return HeadSizes(hidden, dim)
    return HeadSizes(hidden, dim, len(prototypes) // found.head_count, found.head_count)


class Centered(nn.Module):
    """In place of the projection head of a teacher without one: features of length 1, less their mean over images."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features))

    def forward(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        return functional.normalize(features, dim=1) - self.mean


class FrozenTeacher:
    """A trained network, in eval mode and without gradient, that gives the codes.

    network: with its weights; prototypes and a `Centered` head may still be set (`set_prototypes`).
    views: the crops that it sees, by their place among all of a step's.
    dtype: of the crops; float16 and bfloat16 compute by autocast. The weights are float32 at any precision.
    """

    def __init__(self, network: SwAV, views: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.network = network.float().requires_grad_(False).eval()
        self.views, self.dtype = list(views), dtype
        self._digest = _digest(network)

    @property
    def embedding_dim(self) -> int:
        return self.network.prototypes.in_features

    @torch.no_grad()
    def __call__(
        self,
        crops: Sequence[Float[Tensor, "views_batch 3 height width"]],
        batch_size: int,
        queued: Float[Tensor, "views length dim"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings [views, batch, dim], scores [views, batch, prototypes] and, with `queued`, its scores
        [views, length, prototypes]: as the network returns them.

        crops: of the step, one tensor per resolution, view-major; other views than the teacher's are not computed.
        """
        return of_views(self.network, crops, batch_size, queued, self.views, self.dtype)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch feature_dim"]:
        """The backbone's features of `images`, for evaluation."""
        with arithmetic(images.device, self.dtype):
            return self.network(images.to(self.dtype))

    @torch.no_grad()
    def set_prototypes(
        self, prototypes: Float[Tensor, "heads_prototypes dim"], mean: Float[Tensor, " dim"] | None = None
    ) -> None:
        """Take prototypes and, for a teacher without projection head, the mean of its features."""
        self.network.prototypes.weight.copy_(prototypes)
        if isinstance(self.network.projection_head, Centered) and mean is not None:
            self.network.projection_head.mean.copy_(mean)

    def state_tensors(self) -> dict[str, Tensor]:
        """What the file of weights may not have: prototypes and mean; and a digest of what it has."""
        head = self.network.projection_head
        mean = head.mean if isinstance(head, Centered) else torch.zeros(0)
        return {PROTOTYPES: self.network.prototypes.weight, MEAN: mean, DIGEST: self._digest}

    def load_state_tensors(self, saved: RankTensors, rank: int = 0, world_size: int = 1) -> None:
        """Continue. Raises KeyError if no teacher was saved, ValueError if its weights were others."""
        if not torch.equal(saved[0][DIGEST].cpu(), self._digest):
            raise ValueError("distill.weights: the run was begun with other weights of the teacher; give that file")
        self.set_prototypes(saved[0][PROTOTYPES], saved[0][MEAN])


def _digest(network: SwAV) -> Int[Tensor, " 32"]:
    """The SHA-256 of backbone and projection head, as uint8; not of a `Centered` head, which no file has."""
    parts = [network.backbone] + [network.projection_head] * (not isinstance(network.projection_head, Centered))
    sha = hashlib.sha256()
    for part in parts:
        for name, value in part.state_dict().items():
            sha.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(sha.digest()), dtype=torch.uint8)
