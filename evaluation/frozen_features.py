"""Features of a frozen backbone for images to learn from and to score."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.backbones import Backbone, feature_function
from evaluation.command import AskedTooMuch
from evaluation.feature_cache import features
from evaluation.session import Place, central_crops
from pipeline.crops import Crops
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.table import SampleTable


def split_features(
    backbone: Backbone, data: Labelled, place: Place, options: argparse.Namespace, only_test: bool = False
) -> tuple[Float[Tensor, "train features"], Float[Tensor, "test features"]]:
    """Features of data.train_rows and data.test_rows, raw, float32, on the CPU, on every process; kept on disk.
    only_test: leave the first out (0 rows).

    Raises AskedTooMuch for a --stage or --pool that the network has not.
    """
    function, known, crops = _asked(backbone, place, options)
    empty = torch.zeros(0, 0)
    what = f"{backbone.word}: train"
    train = empty if only_test else features(function, known, data.train, data.train_rows, crops, place, what)
    test = features(function, known, data.test, data.test_rows, crops, place, f"{backbone.word}: test")
    return train, test


def table_features(
    backbone: Backbone, table: SampleTable, rows: np.ndarray, place: Place, options: argparse.Namespace
) -> Float[Tensor, "rows features"]:
    """The same of some rows of one table."""
    function, known, crops = _asked(backbone, place, options)
    return features(function, known, table, rows, crops, place, backbone.word)


def _asked(
    backbone: Backbone, place: Place, options: argparse.Namespace
) -> tuple[Callable[[Tensor], Tensor], dict[str, Any], Crops]:
    """The function from images to features, what decides it, and the central crops. Raises AskedTooMuch."""
    network, crops = backbone.network.to(place.device), central_crops(backbone, options)
    try:
        function = feature_function(backbone, network, options.stage, options.pool)
        with torch.no_grad():
            size = crops.views[0].size
            function(torch.zeros(1, 3, size, size, device=place.device))
    except (ValueError, RuntimeError, AssertionError) as error:  # a size that a vision transformer does not take, too
        raise AskedTooMuch(" ".join(str(error).split())[:300]) from None
    return function, about(backbone, options), crops


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
