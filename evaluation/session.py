"""Where an evaluation runs and how it sees its images: processes, device, pipeline, cache."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from evaluation.backbones import Backbone
from evaluation.subsets import listed_rows
from pipeline.crops import Blur, Crops, Jitter, View
from pipeline.dataset.labelled import Labelled, labelled_data
from pipeline.dataset.open import open_splits
from pipeline.dataset.table import DatasetError, SampleTable
from pipeline.loader import Loader
from training.distributed import Cluster, connected

MAX_BAD = 0.01  # of the images, as data.max_bad_fraction


@dataclass(frozen=True)
class Place:
    """cluster: the processes. backend, threads, batch: of the pipeline, batch over all processes. cache: where
    features and half-done work are kept, None: nowhere."""

    cluster: Cluster
    device: torch.device
    backend: str
    threads: int
    batch: int
    bf16: bool
    cache: Path | None
    seed: int

    @property
    def device_id(self) -> int | None:
        """The GPU that makes crops, None where the CPU does."""
        return self.device.index if self.device.type == "cuda" and self.backend in ("dali", "ffcv") else None

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The backbone's forward passes run in here."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            yield


def place_for(options: argparse.Namespace, cluster: Cluster) -> Place:
    """From the arguments. Raises ValueError where processes and batch do not fit."""
    if options.batch % cluster.world_size:
        raise ValueError(f"--batch={options.batch} does not split evenly over {cluster.world_size} processes")
    cores = len(os.sched_getaffinity(0))
    threads = options.threads or min(16, max(1, cores // cluster.local_world_size))
    cache = None if options.cache == "none" else Path(options.cache)
    bf16 = options.precision == "bf16"
    return Place(cluster, cluster.device(), options.backend, threads, options.batch, bf16, cache, options.seed)


@contextmanager
def together(place: Place) -> Iterator[None]:
    """The process group where there are several processes; a single one needs none."""
    with connected(place.cluster) if place.cluster.world_size > 1 else nullcontext():
        yield


def tell(place: Place, note: str | None) -> None:
    """A line on stdout, once for all processes; None says nothing."""
    if note is not None and place.cluster.main:
        print(note, flush=True)


def central_crops(backbone: Backbone, options: argparse.Namespace) -> Crops:
    """The crop that a backbone is evaluated on: what it wants to see, or what was asked for."""
    wanted = backbone.inputs
    size, share = options.size or wanted.size, options.share or wanted.share
    base = Crops((View(size, (share, share)),), mean=wanted.mean, std=wanted.std)
    return base.for_evaluation(size, share)


def batch_of(place: Place, rows: int) -> int:
    """Images a step of training on `rows` images: --batch, or of fewer images all of them."""
    return min(place.batch, rows // place.cluster.world_size * place.cluster.world_size)


def training_loader(place: Place, table: SampleTable, crops: Crops, epoch: int) -> Loader:
    """This process's share of all of `table`, from an epoch on; of a table smaller than a batch all of it is one."""
    cluster = place.cluster
    loader = Loader(
        table, crops, backend=place.backend, seed=place.seed, rank=cluster.rank, world_size=cluster.world_size,
        global_batch=batch_of(place, len(table)), threads=place.threads,
        device_id=place.device_id, dtype=torch.float32, max_bad_fraction=MAX_BAD,
    )  # fmt: skip
    loader.position.epoch = epoch
    return loader


def training_crops(central: Crops, scale: tuple[float, float] = (0.08, 1.0)) -> Crops:
    """RandomResizedCrop and flip of the same size and normalisation: what classifiers are trained on."""
    size = central.views[0].size
    return replace(central, views=(View(size, scale),), flip=0.5, jitter=Jitter(probability=0.0), blur=Blur(0.0))


def open_tables(
    options: argparse.Namespace, backbone: Backbone, place: Place
) -> tuple[SampleTable, SampleTable | None, str]:
    """Tables of the images to learn from and to score, the latter None where there are none; and DATA. Raises
    DatasetError."""
    path = options.data or backbone.data
    if path is None:
        raise DatasetError(f"DATA is not given, and {backbone.word} is no run that would tell; give a folder of images")
    test = options.test or (None if options.data else backbone.test)  # the run's own test goes with its own images
    data: Any = OmegaConf.create({"path": str(path), "test": test, "cache": options.tables, "workers": 0})
    try:
        return *open_splits(data, progress=place.cluster.main), str(path)
    except DatasetError as error:
        told = str(error).replace("data.path=", "DATA=").replace("data.test=", "--test=")
        raise DatasetError(told) from None


def open_labelled(options: argparse.Namespace, backbone: Backbone, place: Place) -> tuple[Labelled, str]:
    """Labelled images to learn from and to score, cut down to the lists; and DATA. Raises DatasetError."""
    train, test, path = open_tables(options, backbone, place)
    data = labelled_data(train, test)
    if data is None:
        raise DatasetError(f"DATA={path}: no classes; put the images into a sub-folder for each class")
    if options.train_list is not None:
        rows = listed_rows(train, options.train_list, "--train-list")
        # without a test set of its own, what is learnt from must not be scored
        test_rows = data.test_rows if test is not None or options.test_list else _without(data, rows)
        data = replace(data, train_rows=rows[train.label[rows] >= 0], test_rows=test_rows)
    if options.test_list is not None:
        rows = listed_rows(data.test, options.test_list, "--test-list")
        rows = rows[data.test.label[rows] >= 0]
        data = replace(data, test_rows=rows)
        if test is None:
            data = replace(data, train_rows=data.train_rows[~np.isin(data.train_rows, rows)])
    if not len(data.train_rows) or not len(data.test_rows):
        raise DatasetError(
            f"DATA={path}: no labelled image is left to {'learn from' if len(data.test_rows) else 'score'}"
        )
    return data, path


def _without(data: Labelled, rows: np.ndarray) -> np.ndarray:
    everything = data.train.usable()
    everything = everything[data.train.label[everything] >= 0]
    return everything[~np.isin(everything, rows)]
