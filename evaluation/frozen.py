"""Features of a frozen backbone for images to learn from and to score."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.backbones import Backbone, feature_function
from evaluation.cache import features
from evaluation.command import AskedTooMuch
from evaluation.features import Labelled
from evaluation.place import Place, central_crops


def split_features(
    backbone: Backbone, data: Labelled, place: Place, options: argparse.Namespace, only_test: bool = False
) -> tuple[Float[Tensor, "train features"], Float[Tensor, "test features"]]:
    """Features of data.train_rows and data.test_rows, raw, float32, on the CPU, on every process; kept on disk.
    only_test: leave the first out (0 rows).

    Raises AskedTooMuch for a --stage or --pool that the network has not.
    """
    network = backbone.network.to(place.device)
    crops = central_crops(backbone, options)
    try:
        function = feature_function(backbone, network, options.stage, options.pool)
        with torch.no_grad():
            size = crops.views[0].size
            function(torch.zeros(1, 3, size, size, device=place.device))
    except (ValueError, RuntimeError, AssertionError) as error:  # a size that a vision transformer does not take, too
        raise AskedTooMuch(" ".join(str(error).split())[:300]) from None
    known = about(backbone, options)
    empty = torch.zeros(0, 0)
    train = (
        empty
        if only_test
        else features(function, known, data.train, data.train_rows, crops, place, f"{backbone.word}: train")
    )
    test = features(function, known, data.test, data.test_rows, crops, place, f"{backbone.word}: test")
    return train, test


def about(backbone: Backbone, options: argparse.Namespace) -> dict[str, Any]:
    """What, beside images and crops, decides the features."""
    return {
        "backbone": backbone.word,
        "architecture": backbone.architecture,
        "weights": backbone.weights,
        "stage": options.stage,
        "pool": options.pool,
        "precision": options.precision,
    }
