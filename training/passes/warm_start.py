"""Before the first step of a run that goes on from weights: batch norm, prototypes and queue get used to the images."""

from __future__ import annotations

from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from common.progress import progress_bar
from model.clustering.deepcluster import ITERATIONS, kmeans_targets
from model.clustering.memory import Memory
from model.distillation import FrozenTeacher
from model.teacher import Teacher
from training.distillation.prototypes import find_prototypes
from training.distributed import Cluster
from training.passes.first_pass import first_pass, of_assigning
from training.run_state import RunState
from training.stopping import StopSignal
from training.zero import write_parameter

SAMPLES = 64  # images for each prototype, of which k-means takes the embeddings


def warm_start(run_state: RunState, config: DictConfig, cluster: Cluster, stop_signal: StopSignal) -> None:
    """One pass without steps, of as many steps as its parts need, an epoch at most; to be called on all ranks.

    - model.adapt_steps: batch norm's running statistics follow the images for so many steps.
    - model.prototypes_from=kmeans: the prototypes become centroids of the embeddings of SAMPLES images for each of them
      (spherical k-means), in the float32 masters and a teacher too. Heads start from different images.
    - A queue that counts from the first epoch on is filled.

    Does nothing if the settings ask for neither of the first two. Before it, the teacher of a distillation gets its
    prototypes where its file has none. A signal ends the pass; the caller looks for it.
    """
    if isinstance(run_state.teacher, FrozenTeacher) and config.distill.prototypes_from == "kmeans":
        find_prototypes(run_state.teacher, config, run_state.loader, cluster, stop_signal)
    model, loader, queue = config.model, run_state.loader, run_state.queue
    kmeans, batch = model.prototypes_from == "kmeans", config.run.batch_size
    steps = max(model.adapt_steps, -(-SAMPLES * model.prototypes // batch) if kmeans else 0)
    if not steps:
        return
    fills = queue if config.swav.queue.start_epoch == 0 and config.method == "swav" else None
    steps = min(len(loader), max(steps, 0 if fills is None else config.swav.queue.length // batch))
    crops = min(model.heads, len(config.swav.assigning))  # heads take those of the crops in turn
    samples = steps * batch // cluster.world_size if kmeans else 0
    memory = Memory(crops, samples, model.embedding_dim, cluster.device())

    def take(rows: Int[Tensor, " batch"], embeddings: Float[Tensor, "assigning batch dim"]) -> None:
        if kmeans:
            memory.add(rows, embeddings[:crops])
        if fills is not None:
            fills.push(embeddings)

    embed = of_assigning(run_state.engine, config, loader)
    if not first_pass(take, steps, config, loader, embed, cluster, stop_signal):
        return
    if kmeans:
        images, seed = len(loader.feed.table), config.run.seed
        with progress_bar(model.heads * ITERATIONS, "k-means", "iteration", cluster.main) as bar:
            _, centroids = kmeans_targets(memory, images, model.heads, model.prototypes, seed, 0, bar.update)
        write_parameter(run_state.engine, run_state.optimizer, "prototypes.weight", centroids)
    if isinstance(run_state.teacher, Teacher):
        run_state.teacher.become(run_state.network)
