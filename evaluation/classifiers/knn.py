"""Weighted k-nearest-neighbor classification on frozen features, a quick score of a backbone without training.

The protocol of Wu et al. (CVPR 2018), as later papers use it: cosine similarity; each of the k neighbors votes for its
class with exp(similarity / temperature).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from common.progress import counted, progress_bar
from evaluation.features import bank_dtype, evaluation_mode, extract, gather
from model.backbone import weights_channels_last
from model.distillation import FrozenTeacher
from model.nearest import predict
from model.probe import Probe
from model.teacher import Teacher
from pipeline.crops import Crops
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.table import SampleTable
from pipeline.loader import evaluation_batches
from training.build import sizes_of, starting_network
from training.compiled import in_whole_batches


def knn_accuracy(
    function: Callable[[Tensor], Tensor],
    data: Labelled,
    crops: Crops,
    config: DictConfig,
    device: torch.device,
    probe: Callable[[Tensor], Tensor] | None = None,
    what: str = "k-NN",
) -> dict[str, float]:
    """Accuracies in [0, 1] on the test images: `knn` and, with a probe, `probe`.

    function: crops (B, C, s, s) to features (B, dim). probe: features to classes. what: the progress bar's title.

    All ranks take part: each computes the features of its share of both sets, and classifies its share of the test.
    All run `function` equally often, since it may communicate (ZeRO stage 3): where the rows do not split evenly, or
    are fewer than the ranks, some are computed twice and dropped.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def features(table: SampleTable, rows: np.ndarray, bar: Any, dtype: torch.dtype) -> Tensor:
        own, computed = len(rows[rank::world]), -(-len(rows) // world)
        read = evaluation_batches(
            table,
            np.resize(rows, computed * world)[rank::world],
            crops,
            backend=config.pipeline.backend,
            batch_size=config.evaluation.batch_size,
            threads=config.pipeline.threads,
            device_id=device.index if config.pipeline.device == "gpu" else None,
            max_bad_fraction=config.data.max_bad_fraction,
            hw_decoder_load=config.pipeline.hw_decoder_load,
        )
        batches = counted(read, bar, lambda batch: len(batch.rows))
        return extract(function, batches, device, computed, dtype)[:own]

    images = sum(-(-len(rows) // world) for rows in (data.train_rows, data.test_rows))
    with progress_bar(images, what, "img", rank == 0) as bar:
        bank = gather(features(data.train, data.train_rows, bar, bank_dtype(device)))
        queries = features(data.test, data.test_rows, bar, torch.float32)
    bank_labels = gather(torch.as_tensor(data.train_labels[rank::world], device=device))
    expected = torch.as_tensor(data.test_labels[rank::world], device=device)
    pair = bank, queries
    used = bank.any(0)
    if 2 * int(used.sum()) < len(used):  # a column of zeros changes no similarity
        pair = bank[:, used], queries[:, used]
    classified = {"knn": predict(pair[0], bank_labels, pair[1], config.evaluation.k, config.evaluation.temperature)}
    if probe is not None:
        classified["probe"] = probe(queries)
    right = torch.stack([(classes == expected).sum() for classes in classified.values()]).double()
    if world > 1:
        dist.all_reduce(right)
    return {name: share / len(data.test_rows) for name, share in zip(classified, right.tolist(), strict=True)}


def backbone_knn(
    engine: Callable[[Tensor], Tensor],
    network: Any,
    data: Labelled,
    crops: Crops,
    config: DictConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    teacher: Teacher | FrozenTeacher | None = None,
    probe: Probe | None = None,
) -> dict[str, float]:
    """Accuracies in [0, 1] on the recipe's central crops: `knn` of the backbone's features; with a probe, `probe` on
    the same features; with a teacher, `knn_teacher` of its features.

    engine: images of `dtype` to features, by `network` or its DeepSpeed engine. network: evaluated in eval mode.
    """
    central = crops.for_evaluation(config.evaluation.size, config.evaluation.share)

    def features(of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return in_whole_batches(of, config.evaluation.batch_size) if config.engine.compile else of

    with evaluation_mode(network):
        classify = None if probe is None else probe.classify
        of_network = features(lambda images: engine(images.to(dtype)))
        accuracies = knn_accuracy(of_network, data, central, config, device, classify, "k-NN: backbone")
    if teacher is not None:
        with evaluation_mode(teacher.network):
            of_teacher = features(teacher.features)
            by_teacher = knn_accuracy(of_teacher, data, central, config, device, what="k-NN: teacher")
        accuracies["knn_teacher"] = by_teacher["knn"]
    return accuracies


def untrained_knn(
    data: Labelled, crops: Crops, config: DictConfig, device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, float | None]:
    """What training is compared with, accuracies in [0, 1]: `knn_random_init`, of the backbone with which the run
    starts, built again from its seed, and `knn_raw_pixels`.

    dtype: of the images; float16 and bfloat16 compute by autocast. A run does not end because the file model.weights
    has gone since its start: then `knn_random_init` is None.
    """
    raw_pixels = pixel_knn(data, crops, config, device)
    try:
        with torch.random.fork_rng(devices=[]):  # training goes on with its own random numbers
            torch.manual_seed(config.run.seed)
            network = weights_channels_last(starting_network(config.model, sizes_of(config)).to(device)).eval()
    except ValueError:
        return {"knn_random_init": None, "knn_raw_pixels": raw_pixels}
    central = crops.for_evaluation(config.evaluation.size, config.evaluation.share)

    def features(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return network(images.to(dtype))

    random_init = knn_accuracy(features, data, central, config, device, what="k-NN: untrained backbone")["knn"]
    return {"knn_random_init": random_init, "knn_raw_pixels": raw_pixels}


def pixel_knn(data: Labelled, crops: Crops, config: DictConfig, device: torch.device) -> float:
    """k-NN accuracy in [0, 1] on raw pixels of images scaled to at most 32 pixels: a baseline."""
    side = min(config.evaluation.size, 32)
    central = crops.for_evaluation(side, config.evaluation.share)
    mean = torch.tensor(crops.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(crops.std, device=device).view(-1, 1, 1)

    def pixels(images: Tensor) -> Tensor:
        return gray_and_colors(images * std + mean).flatten(1)

    return knn_accuracy(pixels, data, central, config, device, what="k-NN: raw pixels")["knn"]


def gray_and_colors(pixels: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
    """RGB in turned axes: the first channel is gray, and the other two are 0 where there is no color. Angles between
    images stay the same. Other channels are not changed."""
    if pixels.shape[1] != 3:
        return pixels
    red, green, blue = pixels.unbind(1)
    axes = (red + green + blue) / 3**0.5, (green - blue) / 2**0.5, (green + blue - 2 * red) / 6**0.5
    return torch.stack(axes, 1)
