"""The session of an evaluation: its processes, device, input pipeline and cache, and the images that it opens."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from config.recipe import default_config
from evaluation.backbones import Backbone
from evaluation.subsets import listed_rows
from model.sizes.trial import channels_of
from pipeline.crops import Crops, View, native_backend
from pipeline.dataset.channels.format import PixelFormat
from pipeline.dataset.labelled import Labelled, labelled_data
from pipeline.dataset.open import open_splits
from pipeline.dataset.table import DatasetError, SampleTable
from pipeline.loader import Loader
from training.distributed import Cluster, connected

OPTIONS = {f"data.{name}": f"--{name}" for name in ("test", "image", "label", "bands", "pages")} | {"data.path": "DATA"}
MAX_BAD: float = default_config().data.max_bad_fraction  # of the images


@dataclass(frozen=True)
class Session:
    """cluster: the processes. device: of this one. backend, threads, batch: of the input pipeline; batch counts images
    over all processes. bf16: precision of the backbone's forward passes. cache: folder for features and unfinished
    training; None keeps nothing. seed: for crops, random weights and subsets."""

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
        """The GPU that makes crops; None if the CPU does."""
        return self.device.index if self.device.type == "cuda" and self.backend in ("dali", "ffcv") else None

    def backend_for(self, table: SampleTable) -> str:
        """The backend that makes this table's crops: `backend`, or the one that keeps the images' own channels."""
        return native_backend(self.backend) if table.pixels.native else self.backend

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The context in which the backbone's forward passes run."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            yield


def open_session(options: argparse.Namespace, cluster: Cluster) -> Session:
    """The session that the arguments ask for. Raises ValueError if the batch does not split over the processes."""
    if options.batch % cluster.world_size:
        raise ValueError(f"--batch={options.batch} does not split evenly over {cluster.world_size} processes")
    cores = len(os.sched_getaffinity(0))
    threads = options.threads or min(16, max(1, cores // cluster.local_world_size))
    cache = None if options.cache == "none" else Path(options.cache)
    bf16 = options.precision == "bf16"
    return Session(cluster, cluster.take_device(), options.backend, threads, options.batch, bf16, cache, options.seed)


@contextmanager
def process_group(session: Session) -> Iterator[None]:
    """The process group, if there are several processes."""
    with connected(session.cluster) if session.cluster.world_size > 1 else nullcontext():
        yield


def print_note(session: Session, note: str | None) -> None:
    """Print a line once for all processes; None and "" print nothing."""
    if note and session.cluster.main:
        print(note, flush=True)


def central_crops(backbone: Backbone, options: argparse.Namespace) -> Crops:
    """The central crop on which a backbone is evaluated: --size and --share, or the backbone's own inputs."""
    inputs = backbone.inputs
    size, share = options.size or inputs.size, options.share or inputs.share
    base = Crops((View(size, (share, share)),), mean=inputs.mean, std=inputs.std)
    return base.for_evaluation(size, share)


def batch_of(session: Session, rows: int) -> int:
    """Images per step of training on `rows` images: --batch, or all of them if they are fewer."""
    return min(session.batch, rows // session.cluster.world_size * session.cluster.world_size)


def training_loader(session: Session, table: SampleTable, crops: Crops, epoch: int) -> Loader:
    """A loader of this process's share of `table` that starts at `epoch`; a table smaller than a batch is one batch."""
    cluster = session.cluster
    loader = Loader(
        table, crops, backend=session.backend_for(table), seed=session.seed, rank=cluster.rank,
        world_size=cluster.world_size, global_batch=batch_of(session, len(table)), threads=session.threads,
        device_id=session.device_id, dtype=torch.float32, max_bad_fraction=MAX_BAD,
    )  # fmt: skip
    loader.position.epoch = epoch
    return loader


def training_crops(central: Crops, scale: tuple[float, float] = (0.08, 1.0)) -> Crops:
    """Training crops for classifiers: RandomResizedCrop and flip, with the size and normalization of `central`."""
    size = central.views[0].size
    return replace(central, views=(View(size, scale),), flip=0.5)


def open_tables(
    options: argparse.Namespace, backbone: Backbone, session: Session
) -> tuple[SampleTable, SampleTable | None, str]:
    """Tables of the training and the test images (None without a test set), and DATA. Raises DatasetError."""
    path = options.data or backbone.data
    if path is None:
        raise DatasetError(
            f"DATA is missing, and {backbone.word} is not a run with data of its own; give a folder of images"
        )
    test = options.test or (None if options.data else backbone.test)  # the run's own test goes with its own images
    own = options.data is None
    choice = {"image": options.image or (own and backbone.image), "label": options.label or (own and backbone.label)}
    choice["bands"] = options.bands or (own and backbone.bands)
    choice["pages"] = options.pages or (own and backbone.pages)
    places: dict[str, Any] = {"path": path if isinstance(path, list) else str(path), "test": test}
    places |= {"cache": options.tables, "workers": 0}
    takes = channels_of(backbone.network)
    channels = "auto" if takes != 3 and backbone.channels == "rgb" else backbone.channels
    places |= {"channels": channels, "layout": backbone.layout, "max_pixels": backbone.max_pixels}
    places |= {"stretch": backbone.stretch, "range": backbone.range}
    data: Any = OmegaConf.create(places | {name: chosen or None for name, chosen in choice.items()})
    try:
        train, held_out = open_splits(data, progress=session.cluster.main)
    except DatasetError as error:
        message = str(error)
        for setting, option in OPTIONS.items():
            message = message.replace(setting, option)
        raise DatasetError(message) from None
    require_channels([backbone], train.pixels, path)
    return train, held_out, str(path)


def require_channels(backbones: Sequence[Backbone], pixels: PixelFormat, path: object) -> None:
    """Raises DatasetError for a backbone that takes another number of channels than the images have."""
    for backbone in backbones:
        takes = channels_of(backbone.network)
        if takes != pixels.channels:
            problem = f"images of {pixels}, and {backbone.word} takes {takes} channel{'s' * (takes != 1)}"
            raise DatasetError(f"DATA={path}: {problem}; give images like those of its training")


def open_labelled(options: argparse.Namespace, backbone: Backbone, session: Session) -> tuple[Labelled, str]:
    """Labeled training and test images, reduced to the lists of names; and DATA. Raises DatasetError."""
    train, test, path = open_tables(options, backbone, session)
    data = labelled_data(train, test)
    if data is None and not any((table.label >= 0).any() for table in (train, test or train)):
        raise DatasetError(f"DATA={path}: no classes; put the images into a sub-folder for each class")
    if data is None:
        raise DatasetError(f"DATA={path}: no labeled image is left to train on or to score")
    if options.train_list is not None:
        rows = listed_rows(train, options.train_list, "--train-list")
        # without a separate test set, training images must not be scored
        test_rows = data.test_rows if test is not None or options.test_list else _without(data, rows)
        data = replace(data, train_rows=rows[train.label[rows] >= 0], test_rows=test_rows)
    if options.test_list is not None:
        rows = listed_rows(data.test, options.test_list, "--test-list")
        rows = rows[data.test.label[rows] >= 0]
        data = replace(data, test_rows=rows)
        if test is None:
            data = replace(data, train_rows=data.train_rows[~np.isin(data.train_rows, rows)])
    if not len(data.train_rows) or not len(data.test_rows):
        raise DatasetError(f"DATA={path}: no labeled image is left to {'train on' if len(data.test_rows) else 'score'}")
    return data, path


def require_images(data: Labelled, path: str, session: Session, each: int) -> None:
    """Raises DatasetError if there are not `each` training images for every process."""
    least = each * session.cluster.world_size
    if len(data.train_rows) < least:
        raise DatasetError(
            f"DATA={path}: {len(data.train_rows)} labeled training images; training on "
            f"{session.cluster.world_size} processes needs {least} or more"
        )


def _without(data: Labelled, rows: np.ndarray) -> np.ndarray:
    everything = data.train.usable()
    everything = everything[data.train.label[everything] >= 0]
    return everything[~np.isin(everything, rows)]
