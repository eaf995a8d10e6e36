"""The teacher of method=distill, from the settings and its file of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from config.errors import ConfigError
from model.backbone import backbone_of, weights_channels_last
from model.distillation import Centered, FrozenTeacher, head_sizes
from model.swav import Prototypes, SwAV
from model.weights import read_weights
from model.weights.take import take_weights
from pipeline.crops import crops_from_config
from training.compiled import compile_network
from training.deepspeed_engine import input_dtype


def fit_teacher(config: DictConfig, choose: Callable[..., None]) -> None:
    """Choose prototypes and heads by the teacher's file. Raises ConfigError or ValueError, one line."""
    model, distill = config.model, config.distill
    sizes = head_sizes(read_weights(Path(distill.weights)))
    has = "prototypes" if sizes.prototypes else "no prototypes that its embeddings fit"
    choose("distill.prototypes_from", "weights" if sizes.prototypes else "kmeans", f"the teacher's file has {has}")
    if distill.prototypes_from == "weights":
        if not sizes.prototypes:
            raise ConfigError(f"distill.prototypes_from=weights: {distill.weights} has {has}; take kmeans")
        for key, value in (("prototypes", sizes.prototypes), ("heads", sizes.heads)):
            choose(f"model.{key}", value, "as the teacher has")
            if model[key] != value:
                raise ConfigError(
                    f"model.{key}={model[key]}: the teacher's file has {value}; leave it out, or set "
                    "distill.prototypes_from=kmeans"
                )


def build_frozen_teacher(
    config: DictConfig, device: torch.device, say: Callable[[str], None] = lambda line: None
) -> FrozenTeacher:
    """The teacher with the weights of its file. say: gets a line about them. Raises ValueError, one line.

    With distill.prototypes_from=kmeans its prototypes are still random (`training.distillation.prototypes`).
    """
    weights, path = read_weights(Path(config.distill.weights)), config.distill.weights
    sizes, model, places = head_sizes(weights), config.model, list(config.swav.assigning)
    crops = crops_from_config(config.crops, config.pipeline.backend, config.distill.crops)
    seen = crops.networks_sizes
    if crops.teachers:
        places, seen = crops.teachers_places, [config.distill.crops.size]
    with torch.random.fork_rng(devices=[]):  # what comes after does not depend on the teacher's size
        backbone = backbone_of(config.distill, [*seen, config.evaluation.size], own_code=True)
        network = SwAV(backbone, sizes.hidden_dim, sizes.embedding_dim or 1, model.prototypes, model.heads)
        if not sizes.embedding_dim:
            features = int(backbone.feature_dim)  # type: ignore[arg-type]
            network.projection_head = Centered(features)
            network.prototypes = Prototypes(features, model.heads * model.prototypes)
    take_weights(network, weights, f"teacher {path}", backbone_only=not sizes.embedding_dim, say=say)
    network.prototypes.normalize()  # published files hold them one update after that
    teacher = FrozenTeacher(network, places, input_dtype(config))
    weights_channels_last(network.to(device))
    if config.engine.compile:
        compile_network(network)
    return teacher
