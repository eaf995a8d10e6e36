"""What DeepCluster-v2 and SeLa-v2 do beside the step: keep an epoch's embeddings, and cluster them before the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from common.progress import progress_bar
from model.deepcluster import IGNORED, kmeans_targets, sinkhorn_targets
from model.memory import Memory
from model.views import select_views
from pipeline.batch import split_batch
from pipeline.loader import Loader
from training.checkpoint.shards import Pieces
from training.deepspeed_engine import input_dtype
from training.distributed import Cluster
from training.stopping import StopSignal, stopping_on_bad_data
from training.zero import full, write_parameter

if TYPE_CHECKING:
    from training.run_state import Kept


@dataclass
class Clusters:
    """memory: this rank's embeddings of the present epoch. targets: every row's cluster in it by each head, alike on
    all ranks, [heads, images of the table]; IGNORED where a row has none."""

    memory: Memory
    targets: Int[Tensor, "heads images"]

    def targets_of(
        self, rows: Int[np.ndarray, " batch"], embeddings: Float[Tensor, "crops batch dim"]
    ) -> Int[Tensor, "heads batch"]:
        """The clusters of a step's rows in this epoch; their embeddings are kept for the next one's."""
        here = torch.from_numpy(rows).to(self.targets.device, non_blocking=True)
        self.memory.add(here, embeddings)
        return self.targets[:, here]

    def own(self, rank: int) -> dict[str, Tensor]:
        """What a checkpoint keeps of this rank's; of what is alike, rank 0's."""
        kept = {f"own/memory.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        kept |= {"own/targets": self.targets.int()} if rank == 0 else {}
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in kept.items()}

    def restore(self, pieces: Pieces, rank: int, world_size: int) -> None:
        """Go on from a checkpoint of any number of ranks. Raises KeyError where it has none of this."""
        same = len(pieces.files) == world_size
        saved = [
            {name: file.get_tensor(f"own/memory.{name}") for name in ("rows", "embeddings")}
            if not same or number == rank
            else {}
            for number, file in enumerate(pieces.files)
        ]
        self.memory.load_state_dicts(saved, rank, world_size)
        self.targets.copy_(pieces.files[0].get_tensor("own/targets"))


def build_clusters(config: DictConfig, loader: Loader, images: int, device: torch.device) -> Clusters | None:
    """Empty ones, None for SwAV. images: rows of the table. The memory takes 4 bytes x embedding_dim for each assigning
    crop of this rank's share of the images."""
    if config.method == "swav":
        return None
    here = len(loader) * config.run.batch_size // loader.world_size
    memory = Memory(len(config.swav.assigning), here, config.model.embedding_dim, device)
    return Clusters(memory, torch.full((config.model.heads, images), IGNORED, device=device))


def begin_epoch(clusters: Clusters, run: Kept, config: DictConfig, cluster: Cluster, stop_signal: StopSignal) -> bool:
    """At an epoch's start, on all ranks: its targets from the memory, which starts anew. In the middle of one nothing.

    DeepCluster-v2 also sets the prototypes to the centroids, in the float32 masters. Before the first epoch the memory
    is filled; False if a signal has ended that.
    """
    memory, epoch = clusters.memory, run.loader.position.epoch
    if run.loader.position.samples:
        return True
    if not memory.filled and not fill_memory(memory, config, run.loader, run.engine, cluster, stop_signal):
        return False
    images, heads = clusters.targets.shape[1], config.model.heads
    if config.method == "deepclusterv2":
        prototypes, seed = config.model.prototypes, config.run.seed
        clusters.targets, centroids = kmeans_targets(memory, images, heads, prototypes, seed, epoch)
        write_parameter(run.engine, run.optimizer, "prototypes.weight", centroids)
    else:
        weight = run.network.get_parameter("prototypes.weight")
        with full([weight]):
            weights, swav = weight.detach().float().clone(), config.swav
        clusters.targets = sinkhorn_targets(memory, images, heads, weights, swav.epsilon, swav.iterations)
    memory.clear()
    return True


@torch.no_grad()
def fill_memory(
    memory: Memory, config: DictConfig, loader: Loader, engine: Any, cluster: Cluster, stop_signal: StopSignal
) -> bool:
    """Before the first epoch, on all ranks: one pass over the first epoch's crops, without a step, fills the memory.

    Embeddings are taken as in training (batch norm by the batch). The loader goes back to where it was. False if a
    signal has ended it.
    """
    parts, assigning = config.engine.accumulation, tuple(config.swav.assigning)
    device, dtype, start = cluster.device(), input_dtype(config), loader.state_dict(cluster.add_up)
    with progress_bar(len(loader), "first embeddings", "step", cluster.main) as bar:
        for images in stopping_on_bad_data(loader):
            crops, rows = [crop.to(device, dtype) for crop in images.crops], torch.from_numpy(images.rows)
            here = len(rows) // parts
            for part, part_rows in zip(split_batch(crops, len(rows), parts), rows.split(here), strict=True):
                memory.add(part_rows, select_views(engine(part, here, None)[0], assigning))
            bar.update()
            if cluster.add_up([stop_signal.received is not None])[0]:
                return False
    loader.load_state_dict(start)
    return True
