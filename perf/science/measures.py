"""Measures that need no labels, of a trained run, and how well they order runs by their k-NN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.backbones import Backbone
    from pipeline.dataset.labelled import Labelled

RANKED = 25_600  # images of RankMe, at most, as in its paper
IMAGES, AUGMENTATIONS, BATCH = 1_000, 10, 50  # of LiDAR
CALLED = {  # a run's figure, and its name in tables
    "mean_loss": "loss", "code_entropy": "code entropy", "embedding_rank": "effective rank", "rankme": "RankMe",
    "rankme_features": "RankMe of the features", "lidar": "LiDAR", "alpha_req": "alpha-ReQ",
}  # fmt: skip


def label_free(backbone: Backbone, features: Tensor, data: Labelled, seed: int) -> dict[str, float]:
    """RankMe, LiDAR and alpha-ReQ of a run's last weights, as evaluation/label_free.py defines them; {} for a backbone
    without heads. features: [train, dim], of the central crops of the training images."""
    import torch
    from torch.nn.functional import normalize

    from evaluation.label_free import alpha_req, lidar, rankme

    if backbone.swav is None:
        return {}
    head = backbone.swav.projection_head.float()
    features = features[:: -(-len(features) // RANKED)]
    with torch.no_grad():
        embeddings = normalize(head(features), dim=1)
        several = augmented_features(backbone, data, seed)
        augmented = normalize(head(several.flatten(0, 1)), dim=1).unflatten(0, several.shape[:2])
    figures = {"rankme": rankme(embeddings), "rankme_features": rankme(features), "lidar": lidar(augmented)}
    return figures | {"alpha_req": alpha_req(features)}


def augmented_features(backbone: Backbone, data: Labelled, seed: int) -> Tensor:
    """Features [images, augmentations, dim] of training images, in large crops as the run draws them."""
    import torch
    from omegaconf import OmegaConf

    from pipeline.crops import crops_from_config
    from pipeline.draw import draw
    from pipeline.loader import evaluation_batches
    from training.trained_network import read_trained

    config = OmegaConf.create(read_trained(Path(backbone.word)).config)
    crops = crops_from_config(config.crops, config.pipeline.backend)
    crops = replace(crops, views=(crops.views[0],) * AUGMENTATIONS)
    rows = data.train_rows[:: -(-len(data.train_rows) // IMAGES)]
    parts = []
    batches = evaluation_batches(
        data.train, rows, crops, backend=config.pipeline.backend, batch_size=BATCH,
        draw_rows=partial(draw, crops, seed, 0),
    )  # fmt: skip
    with closing(batches):
        for batch in batches:
            features = backbone.network(batch.crops[0].float())
            parts.append(features.unflatten(0, (AUGMENTATIONS, -1)).transpose(0, 1))
    return torch.cat(parts)


def ordering(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each measure, the share of the pairs of runs that it orders as their k-NN does: 1 all, 0.5 by chance.

    Better is: a lower loss, an alpha-ReQ nearer to 1, more of everything else. Only measures that all runs have; pairs
    with equal k-NN do not count.
    """
    pairs = [(a, b) for a, b in combinations(runs, 2) if a["knn"] != b["knn"]]
    goodness = {"mean_loss": lambda loss: -loss, "alpha_req": lambda alpha: -abs(alpha - 1)}
    shares = {}
    for name in CALLED:
        if pairs and all(name in run for run in runs):
            good = goodness.get(name, float)
            agree = [(good(a[name]) > good(b[name])) == (a["knn"] > b["knn"]) for a, b in pairs]
            shares[name] = sum(agree) / len(agree)
    return shares
