"""The network of SwAV: backbone, projection head, prototypes (SwAV, section 3 and appendix A)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from model.optimizer.segments import unit_rows_


class SwAV(nn.Module):
    """Embeddings of crops and their scores against the prototypes.

    backbone: images to features, with a `feature_dim`.
    hidden_dim: width of the projection head (2048; 8192 for RN50w2 and w4, 10240 for w5); 0: one layer.
    embedding_dim, num_prototypes: 128 and 3000 in the paper.
    heads: sets of so many prototypes each, one in SwAV, three in DeepCluster-v2 and SeLa-v2. They are one matrix, head
        after head; their scores lie side by side likewise.

    The prototypes are rows of unit length from the start; LARS keeps them so (`unit_rows`).
    """

    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 2048,
        embedding_dim: int = 128,
        num_prototypes: int = 3000,
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        features = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.projection_head: nn.Module
        if hidden_dim:
            self.projection_head = nn.Sequential(
                nn.Linear(features, hidden_dim),
                nn.BatchNorm1d(hidden_dim),
                nn.ReLU(inplace=True),
                nn.Linear(hidden_dim, embedding_dim),
            )
        else:
            self.projection_head = nn.Linear(features, embedding_dim)
        self.prototypes = Prototypes(embedding_dim, heads * num_prototypes)

    def forward(
        self,
        crops: Sequence[Float[Tensor, "views_batch 3 height width"]] | Float[Tensor, "batch 3 height width"],
        batch_size: int = 0,
        queued: Float[Tensor, "assigning length dim"] | None = None,
    ) -> Any:
        """Embeddings, scores, the queued embeddings' scores (None without `queued`), and the first crop's features:
        [crops, batch, dim], [crops, batch, heads * prototypes], [assigning, length, heads * prototypes],
        [batch, feature_dim].

        crops: one tensor per resolution, view-major: [n_r * batch_size, 3, s, s], any memory format.
        batch_size: samples on this rank. The results' first axis counts the views of all resolutions.
        queued: embeddings of earlier steps, to be scored against the present prototypes. It happens here
            because under ZeRO stage 3 the prototypes exist as a whole only inside forward.

        A single tensor of images, for evaluation, gives the backbone's features [batch, feature_dim] alone: here too
        because stage 3 gathers weights around the whole network's forward.

        Embeddings are L2-normalised and detached (they feed the queue and the monitors), scores carry the
        gradient, queue scores none. All are float32 (float64 in a float64 network) whatever autocast says. Features
        are detached too (they feed the online probe), in the backbone's own dtype.
        """
        if isinstance(crops, Tensor):
            return self.backbone(crops)
        # Batch norm: statistics per resolution in the backbone, over all crops together in the head.
        features = torch.cat([self.backbone(images) for images in crops])
        projections = self.projection_head(features.to(next(self.projection_head.parameters()).dtype))
        with torch.autocast(projections.device.type, enabled=False):
            # Scores rounded to bf16 would shift the codes by 0.4 % (mean L1), fp16 by 0.05 %.
            projections = projections.to(torch.promote_types(projections.dtype, torch.float32))
            embeddings = functional.normalize(projections, dim=1)
            scores = self.prototypes(embeddings)
            queue_scores = None
            if queued is not None:
                with torch.no_grad():
                    queue_scores = self.prototypes(queued.to(embeddings.dtype))
        return (
            embeddings.detach().unflatten(0, (-1, batch_size)),
            scores.unflatten(0, (-1, batch_size)),
            queue_scores,
            features[:batch_size].detach(),
        )


class Prototypes(nn.Linear):
    """Scores = embeddings times prototypes, in the embeddings' precision even where weights are half.

    A module with its own forward, no bare parameter: ZeRO stage 3 gathers weights around a module's forward.
    """

    def __init__(self, embedding_dim: int, num_prototypes: int) -> None:
        super().__init__(embedding_dim, num_prototypes, bias=False)
        self.normalize()

    def normalize(self) -> None:
        """L2-normalises the rows in place (published files hold them as the last update left them)."""
        unit_rows_(self.weight)

    def forward(self, embeddings: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows prototypes"]:
        return functional.linear(embeddings, self.weight.to(embeddings.dtype))
