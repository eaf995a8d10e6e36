"""Prototypes for a teacher whose file has none: centroids of its embeddings, before the first step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional

from common.progress import progress_bar
from model.clustering.deepcluster import ITERATIONS, kmeans_targets
from model.clustering.memory import Memory
from model.distillation import Centered, FrozenTeacher
from pipeline.loader import Loader
from training.distributed import Cluster
from training.passes.first_pass import first_pass
from training.stopping import StopSignal

SAMPLES = 64  # images for each prototype, of which k-means takes the embeddings


def find_prototypes(
    teacher: FrozenTeacher, config: DictConfig, loader: Loader, cluster: Cluster, stop_signal: StopSignal
) -> None:
    """Set the teacher's prototypes by spherical k-means of its embeddings of SAMPLES images for each, an epoch at most;
    to be called on all ranks. A teacher without projection head also gets the mean of its features. A signal ends the
    pass; the caller looks for it.
    """
    model, batch = config.model, config.run.batch_size
    steps = min(len(loader), -(-SAMPLES * model.prototypes // batch))
    crops = min(model.heads, len(teacher.views))  # heads take those of the crops in turn
    memory = Memory(crops, steps * batch // cluster.world_size, teacher.embedding_dim, cluster.device())

    def embed(part: list[Tensor], batch_size: int) -> Tensor:
        return teacher(part, batch_size)[0][:crops]

    if not first_pass(memory.add, steps, config, loader, embed, cluster, stop_signal):
        return
    mean = None
    if isinstance(teacher.network.projection_head, Centered):
        mean = _mean(memory.embeddings)
        memory.embeddings.copy_(functional.normalize(memory.embeddings - mean, dim=-1))
    images = len(loader.feed.table)
    with progress_bar(model.heads * ITERATIONS, "k-means", "iteration", cluster.main) as bar:
        _, centroids = kmeans_targets(memory, images, model.heads, model.prototypes, config.run.seed, 0, bar.update)
    teacher.set_prototypes(centroids, mean)


def _mean(embeddings: Tensor) -> Tensor:
    """The mean row over all ranks, which have equally many; summed in float64."""
    total = embeddings.flatten(0, 1).double().mean(dim=0)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total.to(torch.float32)
