"""What is learned and how: network, codes, loss, queue, learning rate, optimizer, weights.

Plain torch: nothing here knows of images on disk, of DeepSpeed or of how many machines there are, and no
module but `backbone` needs timm. Names are imported on first use, so that `model.schedule` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.backbone import build_backbone
    from model.lars import LARS, parameter_groups
    from model.loss import swapped_prediction
    from model.queue import EmbeddingQueue
    from model.schedule import warmup_cosine
    from model.swav import SwAV
    from model.weights import load_weights, published_names

# `sinkhorn` is left out: function and module share the name. Write `from model.sinkhorn import sinkhorn`.
_HOME = {
    "build_backbone": "backbone",
    "LARS": "lars",
    "parameter_groups": "lars",
    "swapped_prediction": "loss",
    "EmbeddingQueue": "queue",
    "warmup_cosine": "schedule",
    "SwAV": "swav",
    "load_weights": "weights",
    "published_names": "weights",
}

__all__ = [
    "LARS",
    "EmbeddingQueue",
    "SwAV",
    "build_backbone",
    "load_weights",
    "parameter_groups",
    "published_names",
    "swapped_prediction",
    "warmup_cosine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(f"model.{_HOME[name]}"), name)
