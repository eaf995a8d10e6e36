"""The start of an epoch in DeepCluster-v2 and SeLa-v2: targets from the embeddings of the epoch before."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from common.progress import progress_bar
from model.deepcluster import IGNORED, ITERATIONS, kmeans_targets, sinkhorn_targets
from model.memory import Memory
from model.targets import EpochTargets
from model.views import select_views
from pipeline.batch import split_batch
from pipeline.loader import Loader
from training.deepspeed_engine import input_dtype
from training.distributed import Cluster
from training.run_state import RunState
from training.stopping import StopSignal, stopping_on_bad_data
from training.zero import full, write_parameter


def build_clusters(config: DictConfig, loader: Loader, images: int, device: torch.device) -> EpochTargets | None:
    """An empty memory and no targets yet; None for SwAV. images: rows of the sample table.

    The memory takes 4 * embedding_dim bytes for each assigning crop of this rank's share of the images.
    """
    if config.method == "swav":
        return None
    samples = len(loader) * config.run.batch_size // loader.world_size
    memory = Memory(len(config.swav.assigning), samples, config.model.embedding_dim, device)
    return EpochTargets(memory, torch.full((config.model.heads, images), IGNORED, device=device))


def begin_epoch(
    clusters: EpochTargets, run_state: RunState, config: DictConfig, cluster: Cluster, stop_signal: StopSignal
) -> bool:
    """At the start of an epoch, on all ranks: its targets from the memory, which is emptied. It does nothing if the
    run resumes in the middle of an epoch.

    DeepCluster-v2 also sets the prototypes to the centroids, in the float32 masters. Before the first epoch the memory
    is filled by a pass without steps. Returns False if a signal has ended that pass.
    """
    memory, epoch = clusters.memory, run_state.loader.position.epoch
    if run_state.loader.position.samples:
        return True
    if not memory.filled and not fill_memory(memory, config, run_state.loader, run_state.engine, cluster, stop_signal):
        return False
    images, heads = clusters.targets.shape[1], config.model.heads
    if config.method == "deepclusterv2":
        prototypes, seed = config.model.prototypes, config.run.seed
        with progress_bar(heads * ITERATIONS, "k-means", "iteration", cluster.main) as bar:
            clusters.targets, centroids = kmeans_targets(memory, images, heads, prototypes, seed, epoch, bar.update)
        write_parameter(run_state.engine, run_state.optimizer, "prototypes.weight", centroids)
    else:
        weight = run_state.network.get_parameter("prototypes.weight")
        with full([weight]):
            weights, swav = weight.detach().float().clone(), config.swav
        with progress_bar(heads, "targets", "head", cluster.main) as bar:
            clusters.targets = sinkhorn_targets(
                memory, images, heads, weights, swav.epsilon, swav.iterations, bar.update
            )
    memory.clear()
    return True


@torch.no_grad()
def fill_memory(
    memory: Memory, config: DictConfig, loader: Loader, engine: Any, cluster: Cluster, stop_signal: StopSignal
) -> bool:
    """Fill the memory by one pass over the first epoch's crops, without steps; to be called on all ranks.

    Batch norm uses the batch's statistics, as in training. The loader returns to the position that it had. Returns
    False if a signal has ended the pass.
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
