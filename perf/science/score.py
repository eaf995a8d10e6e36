"""Scores one network, or the pixels, by k-NN and a linear classifier: a program for one core. Accuracies are balanced:
means over the classes of the share that is right, which is plain accuracy where all classes are equally large.

    python -m perf.science.score OUT.json WEIGHTS RECIPE DATA --seed S [--along RUN]

WEIGHTS: a run, a file, `random`, or `pixels`. Both scores use all images: k-NN as in `evaluate.py knn` (k = 20), and
logistic regression on the standardized features. --along also scores the checkpoints of a run for its learning curve,
by k-NN among a part of the training images.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import Parser, at_least

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.backbones import Backbone
    from evaluation.session import Session
    from pipeline.crops import Crops
    from pipeline.dataset.labelled import Labelled

CURVE_IMAGES = 10_000  # training images for the k-NN of a learning curve
PENALTIES = [1e-5, 1e-4, 1e-3]
CHOOSE = 6  # one training image in six serves to choose the penalty
ITERATIONS = 300


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.science.score", __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("weights")
    parser.add_argument("recipe")
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=at_least(0), required=True)
    parser.add_argument("--along", type=Path)
    parser.add_argument("--tables", default="data/tables")
    options = parser.parse_args(arguments)

    from common.files import write_atomically

    write_atomically(options.out, json.dumps(score(options), indent=1) + "\n")
    return 0


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracies "knn" and "linear", shares in [0, 1]; "penalty" of the latter, "threads" and "seconds".

    For a run also the measures of perf/science/measures.py.
    Also "hands", if the images are drawings of the same symbols by several hands; "classifier", the accuracy of a
    classifier in the weights, if there is one; "curve" with --along; "curve_start" for random weights.
    """
    import torch
    from torch.nn.functional import normalize

    from evaluation.backbones import open_backbone
    from evaluation.classifiers.logistic import chosen_penalty, logistic_regression, standardized
    from model.nearest import predict
    from perf.science.hands import across_hands
    from perf.science.measures import label_free

    began = time.monotonic()
    data, session = labelled_at(options.data, options.tables), one_process(256, options.seed)
    pixels = options.weights == "pixels"
    name = f"random@{options.recipe}" if pixels or options.weights == "random" else options.weights
    backbone = open_backbone(f"{name}@{options.recipe}" if name.endswith(".safetensors") else name, options.seed)
    function = pixels_of(backbone) if pixels else backbone.network
    train, test = features_of(function, data, data.train_rows, backbone, session)
    train_labels, test_labels = torch.as_tensor(data.train_labels), torch.as_tensor(data.test_labels)

    def accuracy(predicted: Tensor) -> float:
        return balanced(predicted, test_labels)

    scores: dict[str, Any] = {"knn": accuracy(predict(normalize(train), train_labels, normalize(test), 20))}
    names = [data.test.name(row) for row in data.test_rows]
    if (found := across_hands(normalize(test), names)) is not None:
        scores["hands"] = found
    if (classifier := classifier_of(options.weights)) is not None:
        scores["classifier"] = accuracy((test @ classifier[0].T + classifier[1]).argmax(1))
    train_x, test_x = standardized(train, test)
    penalty = chosen_penalty(train_x[::CHOOSE], train_labels[::CHOOSE], PENALTIES)
    weights, bias = logistic_regression(train_x, train_labels, penalty, ITERATIONS)
    scores |= {"linear": accuracy((test_x.double() @ weights.T + bias).argmax(1)), "penalty": penalty}
    scores |= label_free(backbone, train, data, options.seed) if Path(options.weights).is_dir() else {}
    if options.along is not None:
        scores["curve"] = [
            {"epoch": epoch, "training_seconds": seconds, "knn": curve_point(weights_at, options, data, session)}
            for epoch, seconds, weights_at in kept_checkpoints(options.along)
        ]
    if options.weights == "random":
        scores["curve_start"] = curve_point(options.weights, options, data, session)
    return {**scores, "threads": torch.get_num_threads(), "seconds": time.monotonic() - began}


def curve_point(weights: str, options: argparse.Namespace, data: Labelled, session: Session) -> float:
    """k-NN accuracy of all test images among CURVE_IMAGES training images."""
    import torch
    from torch.nn.functional import normalize

    from evaluation.backbones import open_backbone
    from model.nearest import predict

    without_recipe = weights == "random" or weights.endswith(".safetensors")
    backbone = open_backbone(f"{weights}@{options.recipe}" if without_recipe else weights, options.seed)
    rows = data.train_rows[:: max(1, len(data.train_rows) // CURVE_IMAGES)]
    train, test = features_of(backbone.network, data, rows, backbone, session)
    train_labels = torch.as_tensor(data.numbers(data.train.label[rows]))
    test_labels = torch.as_tensor(data.test_labels)
    return balanced(predict(normalize(train), train_labels, normalize(test), 20), test_labels)


def balanced(predicted: Tensor, expected: Tensor) -> float:
    """Mean over the classes that occur of the share that is right. Both: [test], numbers of classes."""
    right = (predicted == expected).double()
    return sum(float(right[expected == number].mean()) for number in expected.unique()) / len(expected.unique())


def kept_checkpoints(run: Path) -> list[tuple[int, float, str]]:
    """Epoch, training seconds until then, and weights of each checkpoint of a run, in order."""
    from training.checkpoint.save_load import read_state

    summary = json.loads((run / "summary.json").read_text())
    if files := sorted(run.glob("epoch-*.safetensors")):
        numbers = [int(path.stem.partition("-")[2]) for path in files]
        return [(n, summary["training_seconds"][n - 1], str(path)) for n, path in zip(numbers, files, strict=True)]
    checkpoints, steps = [], summary["steps"] // summary["epochs"]
    for path in sorted((run / "checkpoints").glob("step-*")):
        state = read_state(path)
        checkpoints.append((state["step"] // steps, state["clock"]["cpu_seconds"], str(path)))
    return checkpoints


def features_of(
    function: Callable[[Tensor], Tensor], data: Labelled, rows: Any, backbone: Backbone, session: Session
) -> tuple[Tensor, Tensor]:
    """Features of training `rows` and of all test rows: `function` of their central crops."""
    from evaluation.feature_cache import cached_features

    crops, about = central_crops_of(backbone), {"backbone": backbone.word}
    return (
        cached_features(function, about, data.train, rows, crops, session, "train"),
        cached_features(function, about, data.test, data.test_rows, crops, session, "test"),
    )


def pixels_of(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """A function from crops [batch, 3, s, s] to pixels in [0, 1], [batch, values]; one channel for gray images."""
    import torch

    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (backbone.inputs.mean, backbone.inputs.std))

    def pixels(images: Tensor) -> Tensor:
        shown = images * std + mean
        gray = torch.allclose(shown, shown[:, :1].expand_as(shown), atol=1e-4)
        return (shown[:, :1] if gray else shown).flatten(1)

    return pixels


def classifier_of(weights: str) -> tuple[Tensor, Tensor] | None:
    """Weights and bias of the classifier in a file; None if it has no classifier."""
    from safetensors.torch import load_file

    if not weights.endswith(".safetensors"):
        return None
    tensors = load_file(weights)
    return (tensors["fc.weight"], tensors["fc.bias"]) if "fc.weight" in tensors else None


def central_crops_of(backbone: Backbone) -> Crops:
    """The central crop with which the network's recipe is evaluated."""
    from evaluation.session import central_crops

    return central_crops(backbone, argparse.Namespace(size=None, share=None))


def labelled_at(path: Path, tables: str) -> Labelled:
    """The labelled images of a dataset. Raises DatasetError."""
    from omegaconf import OmegaConf

    from pipeline.dataset.labelled import labelled_data
    from pipeline.dataset.open import open_splits
    from pipeline.dataset.table import DatasetError

    settings: Any = OmegaConf.create({"path": str(path), "test": None, "cache": tables, "workers": 1})
    data = labelled_data(*open_splits(settings, progress=False))
    if data is None:
        raise DatasetError(f"--data={path}: no classes; put the images into a sub-folder for each class")
    return data


def one_process(batch: int, seed: int) -> Session:
    """The setting of an evaluation: this process, on the CPU, with one thread and no cache of features."""
    import torch

    from evaluation.session import Session
    from training.distributed import Cluster

    return Session(Cluster(), torch.device("cpu"), "dali", 1, batch, False, None, seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
