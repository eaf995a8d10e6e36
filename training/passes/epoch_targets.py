"""The start of an epoch in DeepCluster-v2 and SeLa-v2: targets from the embeddings of the epoch before."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from common.progress import progress_bar
from model.clustering.deepcluster import IGNORED, ITERATIONS, kmeans_targets, sinkhorn_targets
from model.clustering.memory import Memory
from model.clustering.targets import EpochTargets
from pipeline.loader import Loader
from training.distributed import Cluster
from training.passes.first_pass import first_pass, of_assigning
from training.run_state import RunState
from training.stopping import StopSignal
from training.zero import full, write_parameter


def build_clusters(config: DictConfig, loader: Loader, images: int, device: torch.device) -> EpochTargets | None:
    """An empty memory and no targets yet; None for the methods that do not cluster. images: rows of the sample table.

    The memory takes 4 * embedding_dim bytes for each assigning crop of this rank's share of the images.
    """
    if config.method in ("swav", "distill"):
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
    loader = run_state.loader
    embed = of_assigning(run_state.engine, config, loader)
    if not memory.filled and not first_pass(memory.add, len(loader), config, loader, embed, cluster, stop_signal):
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
