"""Transfer to other images than those of pre-training: any folder with classes, or a part of it by file lists.

On frozen features: weighted k-NN (k = 20) and logistic regression, its penalty chosen on a part of the images to learn
from. With --finetune also the whole network, SGD with momentum 0.9, learning rates falling as a cosine.

    evaluate.py transfer runs/demo /data/flowers --peers random
    evaluate.py transfer swav_800ep_pretrain.pth.tar /data/places --train-list some.txt --finetune --epochs 30
"""

from __future__ import annotations

import argparse

from evaluation.arguments import command_parser
from evaluation.classifiers.tuning import add_tuning, check_tuning, tuner
from evaluation.command import Evaluate, Figures, compare


def main(arguments: list[str]) -> int:
    parser = command_parser("transfer", __doc__)
    parser.add_argument("--finetune", action="store_true", help="train the whole network too")
    add_tuning(parser, epochs=30, rate=0.01, head=0.1)
    return compare("transfer", parser.parse_args(arguments), check, prepare)


def check(options: argparse.Namespace) -> None:
    if options.finetune:
        check_tuning(options)


def prepare(options: argparse.Namespace) -> Evaluate:
    from torch.nn.functional import normalize

    from evaluation.classifiers.knn import predict
    from evaluation.classifiers.logistic import best_regression, told_of_edge
    from evaluation.features import labels
    from evaluation.frozen_features import split_features
    from evaluation.session import tell

    tune = tuner(options, "transfer", "cosine")

    def evaluate(backbone, data, place) -> Figures:
        train, test = (part.to(place.device) for part in split_features(backbone, data, place, options))
        known = labels(data.train, data.train_rows, place.device)
        wanted = labels(data.test, data.test_rows, place.device)
        found = predict(normalize(train), known, normalize(test), 20)
        figures: Figures = {
            "k-NN top1": float((found == wanted).double().mean()),
            **best_regression(train, known, test, wanted),
        }
        tell(place, told_of_edge(figures["penalty"]))
        return figures | tune(backbone, data, place, "fine-tuned top1") if options.finetune else figures

    return evaluate
