"""All parts of a run that its checkpoints keep, saved and taken up again together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from model.monitor import CodeMonitor
from model.probe import Probe
from model.queue import EmbeddingQueue
from model.teacher import Teacher
from pipeline.loader import Loader
from training.checkpoint.save_load import load_checkpoint, save_checkpoint
from training.counters import Clock
from training.distributed import Cluster
from training.epoch_targets import Clusters
from training.zero import load_loss_scale, loss_scale, publish


@dataclass
class Kept:
    """What differs between two moments of a run; all else follows from its settings and images."""

    engine: Any
    network: nn.Module
    optimizer: Any
    queue: EmbeddingQueue | None
    clusters: Clusters | None
    loader: Loader
    monitor: CodeMonitor
    clock: Clock
    teacher: Teacher | None = None
    probe: Probe | None = None

    def beside(self) -> dict[str, Tensor]:
        """The tensors of teacher and probe, by their names in a rank's file (pieces.py). The teacher's batch norm has
        statistics of each rank's own; all else is alike."""
        found: dict[str, Tensor] = {}
        if self.teacher is not None:
            average = self.teacher.network
            found |= {f"alike/teacher/{name}": parameter for name, parameter in average.named_parameters()}
            found |= {f"own/teacher/{name}": buffer for name, buffer in average.named_buffers()}
        if self.probe is not None:
            found |= {f"alike/probe/{name}": tensor for name, tensor in self.probe.state.items()}
        return found

    def save(
        self, directory: Path, config: DictConfig, cluster: Cluster, step: int, last_epoch: dict[str, float]
    ) -> Path:
        """A checkpoint below `directory`, by all ranks at once. Raises NotSaved, on all of them."""
        table, every = self.loader.feed.table, config.checkpoint.keep_epochs * len(self.loader)
        state = {
            "step": step,
            "clock": self.clock.state_dict(),
            "images": len(table.usable()),
            "digest": table.digest(),
            "monitor": self.monitor.state_dict(),
            "last_epoch": last_epoch,
            "loader": self.loader.state_dict(cluster.add_up),
            "loss_scale": loss_scale(self.engine),
            "config": OmegaConf.to_container(config),
        }
        parts = self.network, self.optimizer, self.queue
        return save_checkpoint(directory, state, *parts, config.checkpoint.keep, every, self.clusters, self.beside())

    def load(self, checkpoint: Path, cluster: Cluster) -> tuple[int, dict[str, float]]:
        """Go on from a checkpoint, on all ranks: its step, and its last epoch's figures. Raises CheckpointError."""
        state = load_checkpoint(checkpoint, self.network, self.optimizer, self.queue, self.clusters, self.beside())
        publish(self.engine)
        load_loss_scale(self.engine, state["loss_scale"])
        self.loader.load_state_dict(state["loader"])
        self.monitor.load_state_dict(state["monitor"], cluster.rank)
        self.clock.load_state_dict(state["clock"])
        return state["step"], state["last_epoch"]
