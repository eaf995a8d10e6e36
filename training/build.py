"""The parts of a run from its settings, without a process group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from config.groups import sizes_of_crops
from model.backbone import backbone_of, weights_channels_last
from model.batchnorm import replace_batch_norm
from model.distillation import FrozenTeacher
from model.lora import add_lora
from model.objective import Objective
from model.probe import Probe
from model.queue import EmbeddingQueue
from model.shapes import only_shapes
from model.swav import SwAV
from model.teacher import Teacher
from model.weights import load_weights
from pipeline.crops import Crops
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.table import SampleTable
from pipeline.loader import Loader
from pipeline.mixing.mixture import mixture_of
from training.compiled import compile_network
from training.deepspeed_engine import input_dtype
from training.distillation.teacher import build_frozen_teacher
from training.distributed import Cluster


def build_loader(
    config: DictConfig, table: SampleTable, crops: Crops, cluster: Cluster, ends_wait: Callable[[], bool] = bool
) -> Loader:
    """This rank's loader of the training set. Raises ValueError where batch, ranks and images do not fit."""
    mixture = mixture_of(table, config.data.weights, config.data.balance)
    return Loader(
        table,
        crops,
        seed=config.run.seed,
        global_batch=config.run.batch_size,
        rank=cluster.rank,
        world_size=cluster.world_size,
        threads=config.pipeline.threads,
        dtype=input_dtype(config),
        max_bad_fraction=config.data.max_bad_fraction,
        neighbors=config.data.neighbors,
        mixture=mixture,
        ends_wait=ends_wait,
        **backend_of(config.pipeline, cluster),
    )


def backend_of(pipeline: DictConfig, cluster: Cluster) -> dict[str, Any]:
    """The loader's backend and where it works, from the recipe's `pipeline` section (fitted)."""
    device, on_gpu = cluster.device(), pipeline.device == "gpu"
    return {
        "backend": pipeline.backend,
        "device_id": device.index if on_gpu else None,
        "pinned_for": None if on_gpu else device.index,
        "hw_decoder_load": pipeline.hw_decoder_load,
    }


def sizes_of(config: Mapping[str, Any]) -> list[int]:
    """The sizes of images, in pixels, that a run's network is given. config: a fitted recipe, or a checkpoint's."""
    sizes, size = sizes_of_crops(config["crops"]), config["evaluation"]["size"]
    return [*sizes, sizes[0] if size == "auto" else size]


def build_network(model: Mapping[str, Any], sizes: Sequence[int] = (), own_code: bool = False) -> SwAV:
    """A recipe's `model:` section at random initialization, on the CPU; sizes: crops that it will be given, in pixels.
    own_code: as for `backbone_of`; True only for settings of the user's. Raises ValueError for what the backbone does
    not take."""
    return SwAV(
        backbone_of(model, sizes, own_code),
        hidden_dim=model["hidden_dim"],
        embedding_dim=model["embedding_dim"],
        num_prototypes=model["prototypes"],
        heads=model.get("heads", 1),  # checkpoints from before there were heads do not name them
    )


def backbone_parameters(model: Mapping[str, Any]) -> int:
    """How many parameters the backbone of a recipe's `model:` section has, counted without memory or a download. Raises
    what the builder raises."""
    with only_shapes():
        backbone = backbone_of(without_download(model), own_code=True)
    return sum(parameter.numel() for parameter in backbone.parameters())


def without_download(model: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `model:` section without the option that fetches weights."""
    return {**model, "options": {key: value for key, value in model["options"].items() if key != "pretrained"}}


def starting_network(
    model: MutableMapping[str, Any],
    sizes: Sequence[int] = (),
    resumed: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> SwAV:
    """The same of the user's own settings, with the weights of model.weights if there are any. Raises ValueError where
    they do not fit.

    resumed: a checkpoint will be loaded, so the weights are not read, and their file may be gone. say: gets a line
    about the weights, and one for model.prototypes_from=auto, which becomes a value. With model.lora the
    backbone gets adapters.
    """
    network = build_network(model, sizes, own_code=True)
    if model["weights"] is not None and not resumed:
        at_random = network.prototypes.weight.detach().clone()
        load_weights(network, Path(model["weights"]), say=say)
        if model["prototypes_from"] == "auto":
            has_none = torch.equal(network.prototypes.weight, at_random)
            model["prototypes_from"], has = ("kmeans", "no") if has_none else ("weights", "the")
            choice = f"model.prototypes_from={model['prototypes_from']}"
            say(
                f"auto: {choice}  (the weights have {has} prototypes that fit; override with model.prototypes_from=...)"
            )
        network.prototypes.normalize()  # published files hold them one update after that
    if model["lora"]["rank"]:
        add_lora(network.backbone, model["lora"]["rank"], model["lora"]["alpha"], sizes[0])
    return network


def build_objective(config: DictConfig) -> Objective:
    """What the run's codes and loss are computed with, of a fitted recipe."""
    swav, model = config.swav, config.model
    return Objective(
        assigning=tuple(swav.assigning),
        epsilon=swav.epsilon,
        iterations=swav.iterations,
        temperature=swav.temperature,
        prototypes=model.prototypes,
        heads=model.heads,
        hard=swav.hard,
        distilled=config.method == "distill",
    )


def build_queue(
    config: DictConfig, cluster: Cluster, teacher: Teacher | FrozenTeacher | None = None
) -> EmbeddingQueue | None:
    """This rank's share of the queue, None where the recipe has none. Raises ValueError where it does not fit.

    teacher: its embeddings, which the queue holds, may be of another number and length than the network's.
    """
    if not config.swav.queue.length:
        return None
    views, dim = len(config.swav.assigning), config.model.embedding_dim
    if isinstance(teacher, FrozenTeacher):
        views, dim = len(teacher.views), teacher.embedding_dim
    return EmbeddingQueue(
        views,
        config.swav.queue.length,
        dim,
        global_batch=config.run.batch_size,
        world_size=cluster.world_size,
        device=cluster.device(),
        dtype=torch.float32,
    )


def build_teacher(
    config: DictConfig, network: SwAV, cluster: Cluster, say: Callable[[str], None] = lambda line: None
) -> Teacher | FrozenTeacher | None:
    """The teacher that gives the codes, None where the recipe has none. To be called on all ranks, before the engine
    takes the network. say: gets a line about a trained teacher's weights. Raises ValueError where they do not fit."""
    if config.method == "distill":
        return build_frozen_teacher(config, cluster.device(), say)
    if not config.swav.teacher.momentum:
        return None
    teacher = Teacher(network, config.swav.assigning, input_dtype(config))
    weights_channels_last(teacher.network)
    ranks = config.engine.sync_batch_norm, cluster.world_size, cluster.rank
    replace_batch_norm(teacher.network, *ranks, equal_batches=True)
    if config.engine.compile:
        compile_network(teacher.network)
    return teacher


def build_probe(config: DictConfig, network: SwAV, table: SampleTable, labelled: Labelled | None) -> Probe | None:
    """The online linear probe on the network's features, None where the recipe has none. Raises ValueError for data
    without labels."""
    if not config.evaluation.probe:
        return None
    features = int(network.backbone.feature_dim)  # type: ignore[arg-type]
    return probe_of(labelled, table, features, next(network.parameters()).device)


def probe_of(labelled: Labelled | None, table: SampleTable, features: int, device: torch.device | str = "cpu") -> Probe:
    """A probe for the labels of the training table, without those held out as a test.

    Raises ValueError where there are none.
    """
    if labelled is None:
        raise ValueError(
            "evaluation.probe=true needs labels to learn and to score; data.path lacks them: give folders by class"
        )
    labels = labelled.numbers(table.label)
    if labelled.test is table:
        labels[labelled.test_rows] = -1
    return Probe(labels, len(labelled.classes), features, device)
