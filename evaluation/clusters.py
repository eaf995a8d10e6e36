"""Which prototype each image belongs to, and what the clusters are like."""

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

TILE, GAP = 96, 4  # pixels of a picture on a sheet, and between them


def assigned(scores: Float[Tensor, "images prototypes"], temperature: float) -> dict[str, np.ndarray]:
    """Of each image: its prototype (the nearest), the score (their cosine), its probability under softmax(scores /
    temperature), and that distribution's entropy in nats."""
    logits = (scores.double() / temperature).log_softmax(1)
    best = scores.argmax(1, keepdim=True)
    return {
        "prototype": best[:, 0].numpy().astype(np.int32),
        "score": scores.gather(1, best)[:, 0].numpy().astype(np.float32),
        "probability": logits.gather(1, best)[:, 0].exp().numpy().astype(np.float32),
        "entropy": -(logits.exp() * logits).sum(1).numpy().astype(np.float32),
    }


def summary(prototype: np.ndarray, label: np.ndarray, prototypes: int) -> dict[str, Any]:
    """Figures of a clustering: prototypes in use, images in the largest; with labels (from 0; -1 without) purity (share
    of images in their cluster's commonest class) and normalised mutual information (over the mean of both entropies).
    """
    sizes = np.bincount(prototype, minlength=prototypes)
    found: dict[str, Any] = {
        "prototypes": prototypes,
        "in use": int((sizes > 0).sum()),
        "largest": int(sizes.max()),
    }
    known = label >= 0
    if known.any():
        counts = np.zeros((prototypes, int(label.max()) + 1))
        np.add.at(counts, (prototype[known], label[known]), 1)
        found["purity"] = float(counts.max(1).sum() / counts.sum())
        joint = counts / counts.sum()
        clusters, classes = _entropy(joint.sum(1)), _entropy(joint.sum(0))
        mutual = clusters + classes - _entropy(joint.ravel())
        found["mutual information"] = float(2 * mutual / (clusters + classes)) if clusters + classes else 1.0
    return found


def class_entropy(prototype: np.ndarray, label: np.ndarray, prototypes: int) -> Float[np.ndarray, " prototypes"]:
    """Entropy in nats of each cluster's classes, nan where no image with a class is in it."""
    found = np.full(prototypes, np.nan)
    for cluster in np.unique(prototype[label >= 0]):
        counts = np.bincount(label[(prototype == cluster) & (label >= 0)])
        found[cluster] = _entropy(counts / counts.sum())
    return found


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-(share * np.log(share)).sum()) + 0.0


def top_images(prototype: np.ndarray, score: np.ndarray, cluster: int, count: int) -> np.ndarray:
    """Indices of a cluster's images with the highest scores, highest first."""
    inside = np.flatnonzero(prototype == cluster)
    return inside[np.argsort(-score[inside], kind="stable")[:count]]


def contact_sheet(
    table: SampleTable, rows: Sequence[int], title: str, columns: int = 8, notes: Sequence[str] = ()
) -> Image.Image:
    """The images of `rows` in a grid under a title, with a note in the corner of each."""
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
    """The central square of an image (H, W, 3) uint8, `side` pixels; small ones are enlarged with their pixels seen."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return square.resize((side, side), Image.Resampling.NEAREST if short < side else Image.Resampling.BILINEAR)


def write_table(columns: dict[str, Any], path: Path) -> None:
    """Columns of one length as .parquet or .csv, whole or not there."""
    import pyarrow
    from pyarrow import csv, parquet

    from common.files import replacing

    made = pyarrow.table(columns)
    with replacing(path) as file:
        if path.suffix == ".csv":
            csv.write_csv(made, file)
        else:
            parquet.write_table(made, file)


@torch.no_grad()
def prototype_scores(swav: Any, features: Float[Tensor, "images features"], chunk: int = 8192) -> Tensor:
    """Cosines [images, prototypes] of the features' embeddings with the prototypes, float32, in eval mode. Of several
    heads of prototypes the first: each is a clustering of its own."""
    head, found = swav.projection_head.float(), []
    for part in features.split(chunk):
        embeddings = torch.nn.functional.normalize(head(part), dim=1)
        found.append(swav.prototypes(embeddings).float().chunk(swav.heads, dim=1)[0])
    return torch.cat(found)
