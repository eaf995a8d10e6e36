"""The disk space that the checkpoints of a run take."""

from __future__ import annotations

from omegaconf import DictConfig

from training.auto import LONGEST_QUEUE, MOST_PROTOTYPES, heads_of

STATE_BYTES = {"lars": 4, "adamw": 8, "muon": 8}  # at most, of optimizer state for each parameter
LEAST_GB = 1.0  # covers all other files of a run


def checkpoint_gb(config: DictConfig) -> float:
    """Gigabytes (1e9 bytes) of one checkpoint: float32 parameters, optimizer state, teacher and queue, without the
    memory (`memory_gb`).

    `auto` counts as the most that it can choose. Raises ValueError for a network that cannot be built.
    """
    from model.shapes import only_shapes
    from training.build import build_network

    prototypes = MOST_PROTOTYPES if config.model.prototypes == "auto" else config.model.prototypes
    with only_shapes():
        network = build_network({**config.model, "prototypes": prototypes, "heads": _heads(config)}, own_code=True)
    length = LONGEST_QUEUE if config.swav.queue.length == "auto" else config.swav.queue.length
    queue = 4 * length * config.model.embedding_dim * len(config.swav.assigning)
    count = sum(parameter.numel() for parameter in network.parameters())
    bytes_each = 4 + STATE_BYTES[config.optimizer.name] + (4 if config.swav.teacher.momentum else 0)
    return float(bytes_each * count + queue) / 1e9


def memory_gb(config: DictConfig, images: int) -> float:
    """Gigabytes that the memory of DeepCluster-v2 and SeLa-v2 takes in a checkpoint: of each image its embeddings
    (float32), its row (int64) and its target (int32) for each head. 0 for the
    other methods, and for 0 images (not yet counted)."""
    if config.method in ("swav", "distill"):
        return 0.0
    return images * (4 * len(config.swav.assigning) * config.model.embedding_dim + 8 + 4 * _heads(config)) / 1e9


def _heads(config: DictConfig) -> int:
    return heads_of(config.method) if config.model.heads == "auto" else config.model.heads


def disk_gb(config: DictConfig, held: int, one: float) -> float:
    """Gigabytes that must be free so that the run can finish.

    held: checkpoints already on the disk. one: size of each (`checkpoint_gb` + `memory_gb`). The newest
    checkpoint.keep and those of every checkpoint.keep_epochs-th epoch stay, and a new one is written before an old one
    is deleted.
    """
    permanent = config.run.epochs // config.checkpoint.keep_epochs if config.checkpoint.keep_epochs else 0
    return max(LEAST_GB, one * max(1, config.checkpoint.keep + 1 + permanent - held))
