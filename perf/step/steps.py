"""A run's parts and its training step as train.py has them, for the benchmarks of a step.

What a recipe asks for is in the step: method, heads, hard codes, queue, teacher, online probe. What a run has only
after some epochs is drawn at random, which takes the same time: the queue's embeddings, the clusters of the images, and
the probe's labels where the images have none. What happens between epochs (k-means, evaluation) is not in a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from model.clustering.memory import Memory
from model.clustering.targets import EpochTargets
from model.distillation import FrozenTeacher
from model.monitor import CodeMonitor
from model.optimizer.build import build_optimizer, set_step
from model.probe import Probe
from model.queue import EmbeddingQueue
from model.teacher import Teacher, only_views
from perf.step.roofline import work_of
from pipeline.batch import Batch, split_batch
from pipeline.crops import crops_from_config
from pipeline.dataset.table import SampleTable
from training.build import build_loader, build_network, build_objective, build_queue, build_teacher
from training.deepspeed_engine import build_engine, input_dtype
from training.distributed import Cluster
from training.step_agreement import Agreement

CLASSES = 1000  # of labels drawn at random


class Steps:
    """All new parts of a run on this rank. Collective: needs the process group.

    `work` (perf/step/roofline.py) is the network's; a teacher's forward pass is not counted in it.

    config: fitted. images: the number that it is fitted to. table: of the images; without one there is no loader, and
    steps take `noise`. classes: of the images' labels; 0: they have none, and the probe's are drawn at random.
    """

    def __init__(
        self, config: DictConfig, cluster: Cluster, images: int, table: SampleTable | None = None, classes: int = 0
    ) -> None:
        self.config, self.device = config, cluster.device()
        self.here = config.run.batch_size // cluster.world_size
        self.dtype = input_dtype(config)
        self.crops = crops_from_config(config.crops, config.pipeline.backend, config.distill.crops)
        self.loader = None if table is None else build_loader(config, table, self.crops, cluster)
        torch.manual_seed(config.run.seed)
        sizes = [*self.crops.networks_sizes, config.evaluation.size]
        self.network = build_network(config.model, sizes, own_code=True).to(self.device)
        self.groups = [(len(views), size) for size, views in self.crops.groups]
        self.work = work_of(self.network, self.groups, self.device)
        self.optimizer = build_optimizer(config.optimizer, self.network)
        self.objective = build_objective(config)
        rows = max(images, 0 if table is None else len(table))
        self.clusters = _drawn_clusters(config, rows, max(images // cluster.world_size, self.here), self.device)
        self.probe = None
        if config.evaluation.probe:
            labels = _labels(table, classes, rows)
            features = int(self.network.backbone.feature_dim)  # type: ignore[arg-type]
            self.probe = Probe(labels, classes or CLASSES, features, self.device)
        self.monitor = CodeMonitor(
            config.model.prototypes, config.model.embedding_dim, self.device, heads=config.model.heads
        )
        self.teacher = build_teacher(config, self.network, cluster)
        self.queue = _full_queue(config, cluster, self.teacher)
        self.engine = build_engine(config, self.network, self.optimizer, cluster, self.device)
        self.agreement = Agreement(cluster.world_size, self.device, config.run.log_every)
        self.mark: Callable[[str], object] = no_mark
        self.number = 0

    def step(self, batches: Iterator[Batch]) -> torch.Tensor:
        """One step on the next of this rank's batches; the loss of its last part. See train.py, "train"."""
        config, mark, parts = self.config, self.mark, self.config.engine.accumulation
        set_step(self.optimizer, self.learning_rate, frozen_prototypes=config.method == "deepclusterv2")
        if self.clusters is not None and self.clusters.memory.room < self.here:
            self.clusters.memory.clear()  # as an epoch's start does
        mark("data_wait")
        images = next(batches)
        mark("copy")
        crops = [crop.to(self.device, self.dtype, non_blocking=True) for crop in images.crops]
        sample_rows, here = images.rows.reshape(parts, -1), self.here // parts
        for rows, part in zip(sample_rows, split_batch(crops, self.here, parts), strict=True):
            queued = None if self.queue is None else self.queue.queued()
            seen = only_views(part, here, self.crops.networks_places)[0]
            embeddings, scores, queue_scores, features = self.engine(seen, here, None if self.teacher else queued)
            mark("codes")
            own = assigned = self.objective.of_assigning(embeddings)
            assigned_scores = self.objective.of_assigning(scores)
            if self.teacher is not None:
                assigned, assigned_scores, queue_scores = self.teacher(part, here, queued)
            targets = None if self.clusters is None else self.clusters.targets_of(rows, assigned)
            codes = self.objective.codes(assigned_scores, queue_scores, targets)
            if self.queue is not None:
                self.queue.push(assigned)
            mark("loss")
            loss = self.objective.loss(codes, scores, targets)
            self.monitor.update(codes, own, loss)
            self.engine.backward(loss)
            self.engine.step()
            if self.probe is not None:
                self.probe.update(features, rows)
        if isinstance(self.teacher, Teacher):
            self.teacher.follow(self.network, config.swav.teacher.momentum)
        self.number += 1
        self.agreement.exchange(self.number, loss, stop=False)
        mark("end")
        return loss

    @property
    def watched(self) -> tuple[Any, ...]:
        """The parts whose calls make marks, as `training.profiling.timeline.watching` takes them."""
        return self.engine, self.monitor, self.teacher, self.probe

    @property
    def learning_rate(self) -> float:
        return float(self.config.optimizer.base_lr) / 100  # a run's first steps'

    def batches(self) -> Iterator[Batch]:
        """The loader's batches, epoch after epoch."""
        assert self.loader is not None
        for _ in itertools.count():
            yield from self.loader

    def noise(self, channels_last: bool) -> Batch:
        """A batch of noise, for which a network takes as long as for one of images."""
        order = torch.channels_last if channels_last else torch.contiguous_format
        crops = [
            torch.randn(len(views) * self.here, 3, size, size, device=self.device)
            .to(self.dtype)
            .contiguous(memory_format=order)
            for size, views in self.crops.groups
        ]
        return Batch(crops, np.arange(self.here))


def _full_queue(config: DictConfig, cluster: Cluster, teacher: Teacher | FrozenTeacher | None) -> EmbeddingQueue | None:
    """The queue of a run's later epochs, of random embeddings; None where the recipe has none."""
    queue = build_queue(config, cluster, teacher)
    while queue is not None and not queue.full:
        here = config.run.batch_size // cluster.world_size
        views, _, length = queue.embeddings.shape
        rows = torch.randn(views, here, length, device=cluster.device())
        queue.push(torch.nn.functional.normalize(rows, dim=2))
    return queue


def _drawn_clusters(config: DictConfig, rows: int, capacity: int, device: torch.device) -> EpochTargets | None:
    """Random clusters of `rows` images, and room for the embeddings of this rank's `capacity`; None for SwAV."""
    if config.method in ("swav", "distill"):
        return None
    memory = Memory(len(config.swav.assigning), capacity, config.model.embedding_dim, device)
    return EpochTargets(memory, torch.randint(config.model.prototypes, (config.model.heads, rows), device=device))


def _labels(table: SampleTable | None, classes: int, rows: int) -> np.ndarray:
    """A label for each of `rows` images: the table's, or drawn at random where there are none."""
    if table is not None and classes:
        each, numbers = np.unique(table.label, return_inverse=True)
        return numbers - int(each[0] < 0)  # -1 for no label, else from 0 on
    return np.random.default_rng(0).integers(0, classes or CLASSES, rows)


def no_mark(_place: str) -> None:
    """For steps that are not watched."""
