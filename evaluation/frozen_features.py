"""Features of a frozen backbone for training and test images, cached on disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.backbones import Backbone, feature_function
from evaluation.command import UnsuitableArgument
from evaluation.feature_cache import cached_features
from evaluation.session import Session, central_crops
from model.backbone import weights_channels_last
from model.sizes.trial import channels_of
from pipeline.crops import Crops
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.table import SampleTable


def split_features(
    backbone: Backbone, data: Labelled, session: Session, options: argparse.Namespace, only_test: bool = False
) -> tuple[Float[Tensor, "train features"], Float[Tensor, "test features"]]:
    """Raw features of data.train_rows and data.test_rows, float32, on the CPU, the same on every process.

    only_test: skip the training images (0 rows). Raises UnsuitableArgument for a --stage or --pool that the network
    does not have, and for features that are not finite.
    """
    function, source, crops = _feature_function(backbone, session, options)

    def features(table: SampleTable, rows: np.ndarray, split: str) -> Tensor:
        title = f"{backbone.word}: {split}"
        return _finite(cached_features(function, source, table, rows, crops, session, title), backbone.word)

    train = torch.zeros(0, 0) if only_test else features(data.train, data.train_rows, "train")
    return train, features(data.test, data.test_rows, "test")


def table_features(
    backbone: Backbone, table: SampleTable, rows: np.ndarray, session: Session, options: argparse.Namespace
) -> Float[Tensor, "rows features"]:
    """Raw features of some rows of a table, as `split_features` gives them."""
    function, source, crops = _feature_function(backbone, session, options)
    return _finite(cached_features(function, source, table, rows, crops, session, backbone.word), backbone.word)


def _finite(features: Float[Tensor, "rows features"], word: str, chunk: int = 65536) -> Tensor:
    """The same features. Raises UnsuitableArgument if some are not finite: a figure of these would mean nothing."""
    bad = sum(int((~part.isfinite().all(1)).sum()) for part in features.split(chunk))
    if bad:
        problem = f"the features of {bad:,} of {len(features):,} images hold infinite or NaN values"
        raise UnsuitableArgument(f"{word}: {problem}; its weights are damaged, or too large for --precision")
    return features


def _feature_function(
    backbone: Backbone, session: Session, options: argparse.Namespace
) -> tuple[Callable[[Tensor], Tensor], dict[str, Any], Crops]:
    """The function from images to features, its `feature_source`, and the central crops. Raises UnsuitableArgument."""
    network = weights_channels_last(backbone.network.to(session.device))
    crops = central_crops(backbone, options)
    try:
        function = feature_function(backbone, network, options.stage, options.pool)
        with torch.no_grad():
            size = crops.views[0].size
            function(torch.zeros(1, channels_of(network), size, size, device=session.device))
    except (
        ValueError,
        RuntimeError,
        AssertionError,
    ) as error:  # also for a size that a vision transformer does not accept
        raise UnsuitableArgument(" ".join(str(error).split())[:300]) from None
    return function, feature_source(backbone, options), crops


def feature_source(backbone: Backbone, options: argparse.Namespace) -> dict[str, Any]:
    """What determines the features besides images and crops; a part of the cache key."""
    return {
        "backbone": backbone.word,
        "architecture": backbone.architecture,
        "weights": backbone.weights,
        "stage": options.stage,
        "pool": options.pool,
        "precision": options.precision,
    }
