"""The network of SwAV: backbone, projection head and prototypes (SwAV, section 3 and appendix A)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from model.optimizer.segments import unit_rows_


class SwAV(nn.Module):
    """Embeddings of crops and their scores against the prototypes.

    backbone: from images to features; its `feature_dim` is their length.
    hidden_dim: width of the projection head (2048; 8192 for RN50w2 and w4, 10240 for w5); 0: a single linear layer.
    embedding_dim, num_prototypes: 128 and 3000 in the paper.
    heads: number of sets of `num_prototypes` prototypes: one in SwAV, three in DeepCluster-v2 and SeLa-v2. They are one
        matrix, head after head; the last axis of the scores has the same order.

    The prototypes start as rows of unit length; the optimizer keeps them so (`unit_rows`).

    backbone_frozen: while true, the backbone gets no gradient. Its batch norm works as in training: the batch's
    statistics normalize, and the running statistics follow the images.
    """

    backbone_frozen = False

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
            self.projection_head = Layers(
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
        batch_size: samples on this rank. The first axis of the results counts the views of all resolutions.
        queued: embeddings of earlier steps, to be scored with the current prototypes. This is done here because under
            ZeRO stage 3 the whole prototypes exist only inside forward.

        A single tensor of images, for evaluation, returns only the backbone's features [batch, feature_dim]. This is
        done here because stage 3 gathers weights around the forward of the whole network.

        Embeddings are L2-normalized and detached (for the queue and the monitors). Scores have a gradient, the queue's
        scores have none. All are float32 (float64 in a float64 network), also in autocast. Features are detached (for
        the online probe) and have the backbone's dtype.
        """
        if isinstance(crops, Tensor):
            return self.backbone(crops)
        # Batch norm statistics: per resolution in the backbone, over all crops together in the head.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_frozen):
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


class Layers(nn.Sequential):
    """nn.Sequential that torch.compile makes one graph of: it skips the forward functions of torch's own modules."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class Prototypes(nn.Linear):
    """Scores = embeddings times prototypes, in the dtype of the embeddings even if weights are half.

    A module instead of a bare parameter, because ZeRO stage 3 gathers weights around the forward of a module.
    """

    def __init__(self, embedding_dim: int, num_prototypes: int) -> None:
        super().__init__(embedding_dim, num_prototypes, bias=False)
        if not self.weight.is_meta:  # a network of shapes alone has no values
            self.normalize()

    def normalize(self) -> None:
        """L2-normalize the rows in place (published files hold them as after an update, not normalized)."""
        unit_rows_(self.weight)

    def forward(self, embeddings: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows prototypes"]:
        return functional.linear(embeddings, self.weight.to(embeddings.dtype))
