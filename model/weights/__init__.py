"""Weights of files: `files` reads tensors, `recognize` finds the backbone and the heads in the layout of any library
(`layouts`), `take` gives them to a network, with `resize` for vision transformers and `guess` for refusals; `reverse`
names them for another library."""

from model.weights.files import check_finite, read_weights
from model.weights.recognize import find
from model.weights.reverse import in_layout
from model.weights.take import load_weights, published_names, take_weights

__all__ = ["check_finite", "find", "in_layout", "load_weights", "published_names", "read_weights", "take_weights"]
