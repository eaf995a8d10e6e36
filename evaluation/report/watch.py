"""Watches a run while it trains: a few fixed images after each epoch, and the run's report.html.

All ranks take part, because under ZeRO stage 3 the network exists only on all of them together. Nothing that goes wrong
here ends a run: rank 0 says it in one line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from evaluation.clusters import top_images
from evaluation.features import evaluation_mode, gather
from evaluation.label_free import alpha_req, lidar, rankme
from evaluation.report.run_files import SIDE, FixedImages, Seen, save_crops, save_images, save_seen
from evaluation.report.run_page import sheets, write_page
from pipeline.batch import DrawRows
from pipeline.crops import Crops
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.table import SampleTable
from pipeline.draw import center, draw
from pipeline.loader import evaluation_batches
from pipeline.order import order
from pipeline.preview import crops_of, denormalized, sheet
from training.deepspeed_engine import input_dtype
from training.distributed import Cluster
from training.run_directory import Journal

QUERIES, SHOWN, PROTOTYPES, CROPS_OF = 6, 8, 12, 4  # queries; neighbors of one; prototypes; images with crops
CHUNK = 1024  # rows whose similarities to all others are in memory at once
AUGMENTATIONS = 8  # crops of an image for LiDAR
SHARE = 0.03  # of the time of an epoch that watching may take; what takes longer is left out after some epochs


class Watch:
    """Watches `evaluation.watched` images of the training set; does nothing if that is 0.

    `watch(epoch, step)` after `epoch` epochs, on all ranks, measures the images, logs it and writes report.html;
    `write()` only writes the page again, on rank 0. Both never raise what goes wrong with images or files.
    """

    def __init__(
        self,
        config: DictConfig,
        table: SampleTable,
        labelled: Labelled | None,
        crops: Crops,
        engine: Any,
        network: Any,
        journal: Journal,
        cluster: Cluster,
    ) -> None:
        self.config, self.table, self.crops, self.cluster, self.journal = config, table, crops, cluster, journal
        self.engine, self.network, self.heads = engine, network, config.model.heads
        usable = table.usable()
        self.rows = usable[np.linspace(0, len(usable) - 1, min(config.evaluation.watched, len(usable))).astype(int)]
        self.label = labelled.numbers(table.label[self.rows]) if labelled else np.full(len(self.rows), -1)
        self.last, self.took = time.monotonic(), 0.0
        self.first, self.broken = True, False  # no pictures are saved yet; something has gone wrong

    def __call__(self, epoch: int, step: int) -> None:
        """To be called on all ranks after `epoch` epochs; 0: before the first step, or at a resumed run's start."""
        if epoch == 0 and step:
            return
        begun, last = time.monotonic(), epoch == self.config.run.epochs
        wait = epoch > 1 and not last and self.took > SHARE * (begun - self.last)
        if not len(self.rows) or self.broken or self.cluster.add_up([self.cluster.main and wait])[0]:
            return
        figures, problem = self._measured(epoch, step)
        told = self.cluster.merge({} if problem is None else {f"rank {self.cluster.rank}": problem})
        if told:
            self.broken = True  # on all ranks
            self.journal.say(f"no measures without labels and no pictures in the report from here on: {_listed(told)}")
        if self.cluster.main:
            self.took = time.monotonic() - begun
            self.journal.log(step, {"epoch": epoch - 1, **figures, "watch_seconds": round(self.took, 3)})
            self.write()
            self.last = time.monotonic()
            self.took = self.last - begun

    def write(self) -> None:
        """Write report.html again, on rank 0."""
        if not self.cluster.main or not self.config.evaluation.watched:
            return
        try:
            write_page([self.journal.directory], self.journal.directory / "report.html")
        except Exception as error:  # whatever it is, a page is not worth a run
            self.journal.say(f"{self.journal.directory / 'report.html'} is not written: {one_line(error)}")

    def _measured(self, epoch: int, step: int) -> tuple[dict[str, float], str | None]:
        """Figures of the images (on rank 0, which also saves its pictures), and what went wrong on this rank."""
        config, batch = self.config, self.config.evaluation.batch_size
        central = self.crops.for_evaluation(config.evaluation.size, config.evaluation.share)
        views = replace(self.crops, views=(self.crops.views[0],) * AUGMENTATIONS)
        several = max(1, batch // AUGMENTATIONS)
        problems: list[str] = []
        parts, augmented = [], []
        with evaluation_mode(self.network), torch.no_grad():
            for images in self._batches(central, batch, partial(center, central), problems):
                embeddings, scores, _, features = self._forward(images, batch)
                own = scores[0, :, : config.model.prototypes]  # several heads are separate clusterings: the first one
                parts.append((embeddings[0], own, features.float(), self._small(images).to(features.device)))
            for images in self._batches(views, several, partial(draw, views, config.run.seed, 0), problems):
                augmented.append(self._forward(images, several)[0].transpose(0, 1).contiguous())
        columns = [torch.cat(list(column)) for column in (*zip(*parts, strict=True), augmented)]
        embeddings, scores, features, pixels, views_of = (self._in_order(column) for column in columns)
        if problems or not self.cluster.main:
            return {}, next(iter(problems), None)
        try:
            figures = {"lidar": lidar(views_of), "rankme": rankme(embeddings), "rankme_features": rankme(features)}
            figures |= {"alpha_req": alpha_req(features), **memory(self.cluster.device())}
            figures |= self._save(epoch, step, scores, features, pixels.numpy())
            return {name: value for name, value in figures.items() if math.isfinite(value)}, None
        except Exception as error:  # of any kind: a full disk, a singular matrix
            return {}, one_line(error)

    def _save(
        self,
        epoch: int,
        step: int,
        scores: Float[Tensor, "images prototypes"],
        features: Float[Tensor, "images dim"],
        pixels: UInt8[np.ndarray, "images side side 3"],
    ) -> dict[str, float]:
        """Write pictures and what is seen in them. Returns `nearest_same_class` where there are labels: for how many
        of the labeled images, as a share, the nearest other image has their class."""
        unit, known = torch.nn.functional.normalize(features), self.label >= 0
        nearest = torch.cat([_others(unit, start).indices for start in range(0, len(unit), CHUNK)]).numpy()
        prototype, best = scores.argmax(1).numpy(), scores.max(1).values.numpy()
        sizes = np.bincount(prototype)
        largest = [int(number) for number in np.argsort(-sizes, kind="stable")[:PROTOTYPES] if sizes[number]]
        shown = [
            {"number": one, "size": int(sizes[one]), "images": top_images(prototype, best, one, SHOWN).tolist()}
            for one in largest
        ]
        queries = self._queries()
        images, directory = FixedImages(pixels, self.label), self.journal.directory
        if self.first:
            save_images(directory, images)
            self.journal.picture(step, "crops", save_crops(directory, self._crops_sheet()))
            self.first = False
        seen = Seen(epoch, queries, [nearest[query].tolist() for query in queries], shown)
        save_seen(directory, seen)
        for name, png in sheets(images, seen).items():
            self.journal.picture(step, name, png)
        same = self.label[nearest[:, 0]] == self.label
        return {"nearest_same_class": float(same[known].mean())} if known.any() else {}

    def _queries(self) -> list[int]:
        """Some images, of as many classes as possible."""
        _, firsts = np.unique(self.label[self.label >= 0], return_index=True)
        firsts = np.flatnonzero(self.label >= 0)[firsts]
        others = np.setdiff1d(np.linspace(0, len(self.rows) - 1, QUERIES).astype(int), firsts)
        spread = firsts[np.unique(np.linspace(0, len(firsts) - 1, QUERIES).astype(int))] if len(firsts) else firsts
        return np.concatenate([spread, others])[:QUERIES].tolist()

    def _crops_sheet(self) -> Image.Image:
        """The first images of the first epoch with their crops."""
        config, crops = self.config, self.crops
        rows = order(config.run.seed, 0, self.table.usable())[:CROPS_OF]
        drawn, tiles, sources = crops_of(self.table, crops, config.pipeline.backend, config.run.seed, 0, rows)
        return sheet(sources, drawn, tiles)

    def _forward(self, crops: Float[Tensor, "crops channels size size"], images: int) -> Any:
        """Embeddings, scores and features as SwAV.forward gives them."""
        return self.engine([crops.to(self.cluster.device(), input_dtype(self.config))], images, None)

    def _small(self, images: Float[Tensor, "images channels size size"]) -> UInt8[Tensor, "images side side 3"]:
        small = torch.nn.functional.adaptive_avg_pool2d(images.float().cpu(), min(SIDE, images.shape[-1]))
        return torch.from_numpy(denormalized(small.permute(0, 2, 3, 1).numpy(), self.crops, self.table.pixels))

    def _batches(
        self, crops: Crops, batch: int, draw_rows: DrawRows, problems: list[str]
    ) -> Iterator[Float[Tensor, "crops channels size size"]]:
        """This rank's share of the images in batches, equally many and equally large on all ranks; after a problem,
        which is added to `problems`, zeros."""
        cluster, pipeline = self.cluster, self.config.pipeline
        share = -(-len(self.rows) // cluster.world_size)
        share = -(-share // batch) * batch
        rows = np.resize(self.rows, share * cluster.world_size)[cluster.rank :: cluster.world_size]
        size = crops.views[0].size
        empty = torch.zeros(len(crops.views) * batch, len(crops.mean), size, size)
        device_id = cluster.device().index if pipeline.device == "gpu" else None
        batches = evaluation_batches(
            self.table,
            rows,
            crops,
            backend=pipeline.backend,
            batch_size=batch,
            threads=pipeline.threads,
            device_id=device_id,
            max_bad_fraction=self.config.data.max_bad_fraction,
            hw_decoder_load=pipeline.hw_decoder_load,
            draw_rows=draw_rows,
        )
        with closing(batches):
            for _ in range(0, share, batch):
                try:
                    images = empty if problems else next(batches).crops[0]
                except Exception as error:  # of any kind; the other ranks wait for this one
                    problems.append(one_line(error))
                    images = empty
                yield images

    def _in_order(self, own: Tensor) -> Tensor:
        """The rows of all ranks in the order of the images, without repeated ones, on the CPU."""
        world = self.cluster.world_size
        return gather(own.contiguous()).cpu().unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)[: len(self.rows)]


def memory(device: torch.device) -> dict[str, float]:
    """GiB that this process takes now, and the most that it has had on its GPU."""
    import psutil

    used = {"memory_gib": psutil.Process().memory_info().rss / 2**30}
    if device.type == "cuda":
        used["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return used


def one_line(error: BaseException) -> str:
    """An exception as a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _listed(told: dict[str, str]) -> str:
    """The first rank's problem, and how many others have one."""
    rank, problem = next(iter(told.items()))
    return f"{rank}: {problem}" + (f" ({len(told) - 1} more ranks)" if len(told) > 1 else "")


def _others(unit: Float[Tensor, "images dim"], start: int) -> Any:
    """The nearest other images of CHUNK images from `start` on: torch.topk's values and indices."""
    similarity = unit[start : start + CHUNK] @ unit.T
    similarity.diagonal(start).fill_(-2)  # itself
    return similarity.topk(min(SHOWN, len(unit) - 1), dim=1)
