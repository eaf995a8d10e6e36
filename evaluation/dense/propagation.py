"""Labels of patches carried over from the nearest patches of other images; nothing is trained.

Balazevic et al., "Towards in-context scene understanding", NeurIPS 2023: a memory of patches, each with
its feature at length 1 and the distribution of classes over its pixels; a patch of a test image gets the mean of its k
nearest neighbors' distributions, weighted by softmax(cosine / temperature). k = 30 and temperature 0.02 as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional

from common.progress import progress_bar
from evaluation.dense.confusion import IGNORED, confusion
from evaluation.dense.linear import summed
from evaluation.dense.maps import Maps, as_input
from evaluation.dense.masks import Masked
from evaluation.features import gather
from evaluation.session import Session
from model.nearest import nearest_rows
from pipeline.crops import Crops

CHUNK = 1024  # patches that are searched at once


def patch_labels(mask: np.ndarray, height: int, width: int, classes: int) -> Float[Tensor, "patches classes"]:
    """Share of each class in each of height x width patches of a mask, row by row. Ignored pixels have no class: a
    patch of nothing else has only zeros."""
    known = torch.from_numpy(mask.astype(np.int64))
    one_hot = functional.one_hot(torch.where(known == IGNORED, classes, known), classes + 1)[..., :classes]
    pooled = functional.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float(), (height, width)).flatten(1).T
    return pooled / pooled.sum(1, keepdim=True).clamp(min=1e-12)


def memory(
    maps: Maps, data: Masked, crops: Crops, patches: int, session: Session, what: str
) -> tuple[Float[Tensor, "patches dim"], Float[Tensor, "patches classes"]]:
    """Features and class shares of about `patches` patches of the training images, the same share of each image, on
    all processes."""
    cluster, random = session.cluster, torch.Generator().manual_seed(session.seed + session.cluster.rank)
    mine, features, labels = data.train[cluster.rank :: cluster.world_size], [], []
    each = max(1, patches // len(data.train))
    with progress_bar(len(mine), what, "img", cluster.main) as bar:
        for pair in mine:
            unit, mask = _patches(maps, data, pair, crops, session)
            shares = patch_labels(mask, unit.shape[1], unit.shape[2], data.classes)
            rows = torch.nonzero(shares.sum(1) > 0)[:, 0]
            rows = rows[torch.randperm(len(rows), generator=random)[:each]]
            features.append(unit.flatten(1).T[rows.to(unit.device)])
            labels.append(shares[rows].to(unit.device))
            bar.update()
    return gather(torch.cat(features)), gather(torch.cat(labels))


def propagate(
    bank: Float[Tensor, "patches dim"],
    labels: Float[Tensor, "patches classes"],
    queries: Float[Tensor, "queries dim"],
    k: int,
    temperature: float,
) -> Float[Tensor, "queries classes"]:
    """Class distributions of the queries. Rows of bank and queries have length 1."""
    found = []
    for part in queries.split(CHUNK):
        similarity, rows = nearest_rows(bank, part, min(k, len(bank)))
        found.append(((similarity / temperature).softmax(1)[..., None] * labels[rows]).sum(1))
    return torch.cat(found)


def score(
    maps: Maps, bank: Tensor, labels: Tensor, data: Masked, crops: Crops, k: int, temperature: float, session: Session,
    what: str,
) -> Int[np.ndarray, "classes classes"]:  # fmt: skip
    """The confusion matrix of the test images at the masks' own size, over all processes."""
    cluster = session.cluster
    matrix = np.zeros((data.classes, data.classes), np.int64)
    mine: Sequence[tuple[Path, Path]] = data.test[cluster.rank :: cluster.world_size]
    with progress_bar(len(mine), what, "img", cluster.main) as bar:
        for pair in mine:
            unit, mask = _patches(maps, data, pair, crops, session)
            shares = propagate(bank, labels, unit.flatten(1).T, k, temperature).T.unflatten(1, unit.shape[1:])
            whole = functional.interpolate(shares[None], mask.shape, mode="bilinear", align_corners=False)[0]
            matrix += confusion(mask, whole.argmax(0).cpu().numpy(), data.classes)
            bar.update()
    return summed(matrix, session)


def _patches(
    maps: Maps, data: Masked, pair: tuple[Path, Path], crops: Crops, session: Session
) -> tuple[Float[Tensor, "dim height width"], np.ndarray]:
    """Features of length 1 of a whole image, scaled to a square, and its mask."""
    image, mask = data.read(pair)
    size = crops.views[0].size
    square = image.resize((size, size), Image.Resampling.BILINEAR)
    features = maps(as_input(square, crops.mean, crops.std)[None].to(session.device))[0]
    return functional.normalize(features, dim=0), mask
