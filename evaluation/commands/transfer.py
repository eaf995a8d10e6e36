"""Transfer to other images than those of pre-training: any folder with classes, or a part of it by file lists.

Scores frozen features by weighted k-NN (k = 20) and logistic regression, whose penalty is chosen on a part of the
training images. --finetune also trains the whole network by SGD with momentum 0.9 and cosine learning rates.

    evaluate.py transfer runs/demo /data/flowers --peers random
    evaluate.py transfer swav_800ep_pretrain.pth.tar /data/places --train-list some.txt --finetune --epochs 30
"""

from __future__ import annotations

import argparse
from typing import Any

from evaluation.arguments import add_seeds, command_parser
from evaluation.classifiers.tuning import BATCH_NORM, add_tuning, check_tuning, tuner
from evaluation.command import Evaluate, Figures, compare


def main(arguments: list[str]) -> int:
    parser = command_parser("transfer", __doc__)
    parser.add_argument("--finetune", action="store_true", help="also train the whole network")
    add_seeds(parser)
    add_tuning(parser, epochs=30, rate=0.01, head=0.1)
    return compare("transfer", parser.parse_args(arguments), check, prepare, open_enough)


def check(options: argparse.Namespace) -> None:
    if options.finetune:
        check_tuning(options)


def open_enough(options: argparse.Namespace, backbone: Any, session: Any) -> Any:
    """The labeled images, enough of them to fine-tune on if that is asked for."""
    from evaluation.session import open_labelled, require_images

    data, path = open_labelled(options, backbone, session)
    if options.finetune:
        require_images(data, path, session, BATCH_NORM)
    return data, path


def prepare(options: argparse.Namespace) -> Evaluate:
    import torch
    from torch.nn.functional import normalize

    from evaluation.classifiers.logistic import best_regression, edge_note
    from evaluation.frozen_features import split_features
    from evaluation.session import print_note
    from model.nearest import predict

    tune = tuner(options, "transfer", "cosine")

    def evaluate(backbone, data, session) -> Figures:
        train, test = (part.to(session.device) for part in split_features(backbone, data, session, options))
        labels = (torch.as_tensor(one, device=session.device) for one in (data.train_labels, data.test_labels))
        train_labels, test_labels = labels
        predicted = predict(normalize(train), train_labels, normalize(test), 20)
        figures: Figures = {
            "k-NN top1": float((predicted == test_labels).double().mean()),
            **best_regression(train, test, train_labels, test_labels),
        }
        print_note(session, edge_note(figures["penalty"]))
        return figures | tune(backbone, data, session, "fine-tuned top1") if options.finetune else figures

    return evaluate
