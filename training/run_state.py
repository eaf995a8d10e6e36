"""The state of a run: the one list of its parts that change while it trains, saved and resumed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from torch import Tensor, nn

from model.clustering.targets import EpochTargets
from model.distillation import FrozenTeacher
from model.monitor import CodeMonitor
from model.probe import Probe
from model.queue import EmbeddingQueue
from model.state import HasState
from model.teacher import Teacher
from pipeline.loader import Loader
from training.checkpoint.masters import load_network, network_shapes, network_tensors
from training.checkpoint.save_load import load_checkpoint, save_checkpoint
from training.checkpoint.shards import CheckpointError
from training.counters import Clock
from training.distributed import Cluster
from training.zero import load_loss_scale, loss_scale, publish

# Values that state.json must hold for a run to resume, besides step and world_size.
KEYS: dict[str, type] = {
    **{"clock": dict, "images": int, "digest": str, "monitor": dict, "last_epoch": dict, "loader": dict},
    **{"loss_scale": dict, "config": dict, "shapes": dict, "buffers": list},
}


@dataclass
class RunState:
    """All that differs between two moments of a run; everything else follows from its settings and images.

    A part that the recipe does not use is None. optimizer: its `layout` says which parameters its tensors hold.
    """

    engine: Any
    network: nn.Module
    optimizer: Any
    queue: EmbeddingQueue | None
    clusters: EpochTargets | None
    loader: Loader
    monitor: CodeMonitor
    clock: Clock
    teacher: Teacher | FrozenTeacher | None = None
    probe: Probe | None = None

    def parts(self) -> list[HasState]:
        """The parts in use that hold tensors, other than network and optimizer."""
        parts: list[HasState | None] = [self.queue, self.clusters, self.teacher, self.probe]
        return [part for part in parts if part is not None]

    def tensors(self, cluster: Cluster) -> dict[str, Tensor]:
        """This rank's tensors by their names in a checkpoint."""
        tensors = network_tensors(self.network, self.optimizer, cluster.rank, cluster.world_size)
        for part in self.parts():
            tensors |= part.state_tensors()
        return tensors

    def save(
        self, directory: Path, config: DictConfig, cluster: Cluster, step: int, last_epoch: dict[str, float]
    ) -> Path:
        """A checkpoint below `directory`; to be called on all ranks at once. Raises NotSaved, on all of them."""
        table = self.loader.feed.table
        state = {
            "step": step,
            "clock": self.clock.state_dict(),
            "images": table.images,
            "digest": table.digest(),
            "monitor": self.monitor.state_dict(),
            "last_epoch": last_epoch,
            "loader": self.loader.state_dict(cluster.add_up),
            "loss_scale": loss_scale(self.engine),
            "config": OmegaConf.to_container(config),
            **network_shapes(self.network, self.optimizer),
        }
        keep_steps = config.checkpoint.keep_epochs * len(self.loader)
        return save_checkpoint(directory, state, self.tensors(cluster), config.checkpoint.keep, keep_steps)

    def load(self, checkpoint: Path, cluster: Cluster) -> tuple[int, dict[str, float]]:
        """Go on from a whole checkpoint of any number of ranks; to be called on all ranks at once.

        Returns its step, and the figures of the last whole epoch by name. Raises CheckpointError if the checkpoint
        holds another network, or lacks a tensor or a value.
        """
        state, saved = load_checkpoint(checkpoint, KEYS)
        rank, world_size = cluster.rank, cluster.world_size
        try:
            load_network(state, saved, self.network, self.optimizer, rank, world_size)
            for part in self.parts():
                part.load_state_tensors(saved.ranks, rank, world_size)
        except (KeyError, SafetensorError) as error:
            raise CheckpointError(f"{checkpoint} lacks {error}; another program wrote it") from None
        publish(self.engine)

        def load(key: str, take: Callable[[Any], Any]) -> Any:
            try:
                return take(state[key])
            except (LookupError, TypeError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise CheckpointError(f"{checkpoint}: state.json: '{key}' is malformed ({reason})") from None

        load("loss_scale", lambda values: load_loss_scale(self.engine, values))
        load("loader", self.loader.load_state_dict)
        load("monitor", lambda values: self.monitor.load_state_dict(values, rank))
        load("clock", self.clock.load_state_dict)
        return state["step"], load("last_epoch", lambda values: {key: float(value) for key, value in values.items()})
