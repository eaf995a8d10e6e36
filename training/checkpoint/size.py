"""The disk that a run's checkpoints will want."""

from __future__ import annotations

from omegaconf import DictConfig

from training.auto import heads_of

STATE_BYTES = {"lars": 4, "adamw": 8}  # the optimizer's, a parameter
MOST_PROTOTYPES, LONGEST_QUEUE = 3000, 3840  # that `auto` chooses (training.auto)
LEAST_GB = 1.0  # for anything else that a run writes


def checkpoint_gb(config: DictConfig) -> float:
    """Gigabytes (1e9 bytes) of one checkpoint: float32 parameters, the optimizer's state, the teacher, the queue. Not
    the memory of `memory_gb`.

    `auto` counts as the most that it may come to. Raises ValueError for a network that cannot be built.
    """
    import torch

    from training.build import build_network

    prototypes = MOST_PROTOTYPES if config.model.prototypes == "auto" else config.model.prototypes
    with torch.device("meta"):
        network = build_network({**config.model, "prototypes": prototypes, "heads": _heads(config)})
    length = LONGEST_QUEUE if config.swav.queue.length == "auto" else config.swav.queue.length
    queue = 4 * length * config.model.embedding_dim * len(config.swav.assigning)
    count = sum(parameter.numel() for parameter in network.parameters())
    bytes_each = 4 + STATE_BYTES[config.optimizer.name] + (4 if config.swav.teacher.momentum else 0)
    return float(bytes_each * count + queue) / 1e9


def memory_gb(config: DictConfig, images: int) -> float:
    """Gigabytes of a checkpoint that DeepCluster-v2's and SeLa-v2's memory of `images` takes: embeddings (float32) and
    row (int64) of each, and its target (int32) of each head. 0 for SwAV, or where images, unknown, are 0."""
    if config.method == "swav":
        return 0.0
    return images * (4 * len(config.swav.assigning) * config.model.embedding_dim + 8 + 4 * _heads(config)) / 1e9


def _heads(config: DictConfig) -> int:
    return heads_of(config.method) if config.model.heads == "auto" else config.model.heads


def disk_gb(config: DictConfig, held: int, one: float) -> float:
    """Gigabytes that must be free for the run to go to its end.

    held: checkpoints that are there already; one: what each takes (`checkpoint_gb`, `memory_gb`). checkpoint.keep of
    them stay, as do those of every checkpoint.keep_epochs-th epoch, and one is written before an old one goes.
    """
    kept_for_ever = config.run.epochs // config.checkpoint.keep_epochs if config.checkpoint.keep_epochs else 0
    return max(LEAST_GB, one * max(1, config.checkpoint.keep + 1 + kept_for_ever - held))
