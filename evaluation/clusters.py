"""Assigns images to prototypes, and describes the clusters that they form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.dataset.reader import Reader
from pipeline.dataset.table import SampleTable

TILE, GAP = 96, 4  # pixels: side of a picture on a sheet, and distance to the next


def assigned(scores: Float[Tensor, "images prototypes"], temperature: float) -> dict[str, np.ndarray]:
    """For each image: its nearest prototype, the score (their cosine), the prototype's probability under
    softmax(scores / temperature), and the entropy of that distribution in nats."""
    logits = (scores.double() / temperature).log_softmax(1)
    best = scores.argmax(1, keepdim=True)
    return {
        "prototype": best[:, 0].numpy().astype(np.int32),
        "score": scores.gather(1, best)[:, 0].numpy().astype(np.float32),
        "probability": logits.gather(1, best)[:, 0].exp().numpy().astype(np.float32),
        "entropy": -(logits.exp() * logits).sum(1).numpy().astype(np.float32),
    }


def summary(prototype: np.ndarray, label: np.ndarray, prototypes: int) -> dict[str, Any]:
    """Figures of a clustering: prototypes in use, and images of the largest.

    With labels (from 0; -1: no label) also purity, the share of images in the most common class of their cluster, and
    mutual information, normalized by the mean of both entropies.
    """
    sizes = np.bincount(prototype, minlength=prototypes)
    figures: dict[str, Any] = {
        "prototypes": prototypes,
        "in use": int((sizes > 0).sum()),
        "largest": int(sizes.max()),
    }
    known = label >= 0
    if known.any():
        # labels may be ids, so only those pairs of cluster and label are counted that occur
        pairs, counts = np.unique((prototype[known].astype(np.int64) << 32) + label[known], return_counts=True)
        largest = np.zeros(prototypes)
        np.maximum.at(largest, pairs >> 32, counts)
        figures["purity"] = float(largest.sum() / counts.sum())
        clusters, classes = (_entropy(np.unique(one[known], return_counts=True)[1]) for one in (prototype, label))
        mutual = clusters + classes - _entropy(counts)
        figures["mutual information"] = float(2 * mutual / (clusters + classes)) if clusters + classes else 1.0
    return figures


def class_entropy(prototype: np.ndarray, label: np.ndarray, prototypes: int) -> Float[np.ndarray, " prototypes"]:
    """Entropy in nats of the classes in each cluster; nan for a cluster without labeled images."""
    entropies = np.full(prototypes, np.nan)
    for cluster in np.unique(prototype[label >= 0]):
        entropies[cluster] = _entropy(np.unique(label[(prototype == cluster) & (label >= 0)], return_counts=True)[1])
    return entropies


def _entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution, from counts above 0."""
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum()) + 0.0


def top_images(prototype: np.ndarray, score: np.ndarray, cluster: int, count: int) -> np.ndarray:
    """Indices of a cluster's images with the highest scores, highest first."""
    inside = np.flatnonzero(prototype == cluster)
    return inside[np.argsort(-score[inside], kind="stable")[:count]]


def contact_sheet(
    table: SampleTable, rows: Sequence[int], title: str, columns: int = 8, notes: Sequence[str] = ()
) -> Image.Image:
    """The images of `rows` in a grid under a title, with a note in a corner of each image."""
    columns = min(columns, max(1, len(rows)))
    lines = -(-len(rows) // columns)
    step = TILE + GAP
    width = max(columns * step + GAP, 8 * len(title) + 2 * GAP)
    sheet = Image.new("RGB", (width, 20 + lines * step + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, fill="black")
    reader = Reader(table)
    try:
        for index, row in enumerate(rows):
            left, top = GAP + index % columns * step, 20 + index // columns * step
            sheet.paste(thumbnail(reader.decode(int(row))), (left, top))
            if index < len(notes):
                pen.text((left + 2, top + TILE - 12), notes[index], fill="white", stroke_width=1, stroke_fill="black")
    finally:
        reader.close()
    return sheet


def thumbnail(pixels: np.ndarray, side: int = TILE) -> Image.Image:
    """The central square of an image (H, W, 3) uint8, scaled to `side` pixels; pixels of small images stay visible."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return square.resize((side, side), Image.Resampling.NEAREST if short < side else Image.Resampling.BILINEAR)


def write_table(columns: dict[str, Any], path: Path) -> None:
    """Write columns of equal length as .parquet or .csv, atomically."""
    import pyarrow
    from pyarrow import csv, parquet

    from common.files import replacing

    table = pyarrow.table(columns)
    with replacing(path) as file:
        if path.suffix == ".csv":
            csv.write_csv(table, file)
        else:
            parquet.write_table(table, file)


@torch.no_grad()
def prototype_scores(swav: Any, features: Float[Tensor, "images features"], chunk: int = 8192) -> Tensor:
    """Cosines [images, prototypes] of the features' embeddings with the prototypes, float32, in eval mode.

    With several heads of prototypes, which are separate clusterings, those of the first head.
    """
    head, scores = swav.projection_head.float(), []
    for part in features.split(chunk):
        embeddings = torch.nn.functional.normalize(head(part), dim=1)
        scores.append(swav.prototypes(embeddings).float().chunk(swav.heads, dim=1)[0])
    return torch.cat(scores)
