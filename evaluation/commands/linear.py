"""Linear classification on a frozen backbone.

The published protocol: RandomResizedCrop and flip, SGD with momentum 0.9, 100 epochs, weight decay 1e-6, learning rate
0.3 for 256 images per step (scaled with --batch), which falls as a cosine by epochs. The last epoch is the result.
Several learning rates are trained in one pass over the images. An interrupted command resumes after its last epoch.
The protocol's crops of 8 % of the area and more are for photographs. On Fashion-MNIST's 28 pixels (4 epochs on a demo's
checkpoint) they gave 73.0 %, crops from 30 % 73.3 %, from 60 % 75.0 %, the whole image (--scale 1 1) 79.1 %.

    evaluate.py linear runs/demo --epochs 10 --lr 0.1,0.3,1
    evaluate.py linear swav_800ep_pretrain.pth.tar /data/imagenet --stage layer3
    evaluate.py linear runs/demo --cached        logistic regression on the central crops' features: seconds
"""

from __future__ import annotations

import argparse
from typing import Any

from evaluation.arguments import add_scale, add_seeds, check_number, check_scale, command_parser, numbers
from evaluation.command import Evaluate, Figures, compare


def main(arguments: list[str]) -> int:
    parser = command_parser("linear", __doc__)
    parser.add_argument("--lr", default="0.3", help="learning rates for 256 images a step, with commas (default 0.3)")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=1e-6)
    add_scale(parser)
    add_seeds(parser)
    parser.add_argument("--nesterov", action="store_true", help="use Nesterov momentum")
    parser.add_argument("--bn", action="store_true", help="batch norm in front of the classifier")
    parser.add_argument("--best", action="store_true", help="also the best over epochs, chosen on the scored images")
    parser.add_argument("--cached", action="store_true", help="logistic regression on cached features, for small sets")
    return compare("linear", parser.parse_args(arguments), check, prepare, open_enough)


def check(options: argparse.Namespace) -> None:
    numbers("--lr", options.lr)
    check_scale(options.scale)
    check_number(options, "weight_decay", zero=True)
    if options.epochs < 1:
        raise ValueError(f"--epochs={options.epochs}: expected an integer of at least 1")


def open_enough(options: argparse.Namespace, backbone: Any, session: Any) -> Any:
    """The labeled images: one for each process, and two where batch norm needs them to train."""
    from evaluation.session import open_labelled, require_images

    data, path = open_labelled(options, backbone, session)
    if not options.cached:
        require_images(data, path, session, 2 if options.bn else 1)
    return data, path


def prepare(options: argparse.Namespace) -> Evaluate:
    import hashlib

    import torch

    from evaluation.backbones import feature_function
    from evaluation.classifiers.linear import Protocol, train_classifiers
    from evaluation.classifiers.logistic import best_regression, edge_note
    from evaluation.feature_cache import cache_key
    from evaluation.frozen_features import feature_source, split_features
    from evaluation.session import batch_of, central_crops, print_note, training_crops

    rates = tuple(numbers("--lr", options.lr))

    def evaluate(backbone, data, session) -> Figures:
        if options.cached:
            return regression(backbone, data, session)
        central = central_crops(backbone, options)
        training = training_crops(central, tuple(options.scale))
        test = split_features(backbone, data, session, options, only_test=True)[1]
        scaled = tuple(rate * batch_of(session, len(data.train_rows)) / 256 for rate in rates)
        protocol = Protocol(scaled, options.epochs, 0.9, options.nesterov, options.weight_decay, options.bn)
        progress = None
        if session.cache is not None:
            key = cache_key(feature_source(backbone, options), data.train, data.train_rows, central, session.backend)
            key += cache_key({}, data.test, data.test_rows, central, "")
            key += repr((protocol, training, options.batch, options.seed))
            progress = session.cache / f"linear-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        function = feature_function(backbone, backbone.network, options.stage, options.pool)
        what = f"{backbone.word}: linear"
        curves = train_classifiers(function, test, data, training, protocol, session, progress, what)
        figures: Figures = {"linear top1": {f"lr={rate:g}": c[-1] for rate, c in zip(rates, curves, strict=True)}}
        if options.best:
            figures["best epoch's top1"] = {f"lr={r:g}": max(c) for r, c in zip(rates, curves, strict=True)}
        return {**figures, "curves": {f"lr={rate:g}": curve for rate, curve in zip(rates, curves, strict=True)}}

    def regression(backbone, data, session) -> Figures:
        labels = (torch.as_tensor(one, device=session.device) for one in (data.train_labels, data.test_labels))
        features = (part.to(session.device) for part in split_features(backbone, data, session, options))
        figures = best_regression(*features, *labels)
        print_note(session, edge_note(figures["penalty"]))
        return figures

    return evaluate
