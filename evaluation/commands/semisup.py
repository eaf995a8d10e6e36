"""Semi-supervised: the whole network fine-tuned on the labels of a few images.

The published protocol: 20 epochs, SGD with momentum 0.9, no weight decay, 256 images a step, learning rates of backbone
and new classifier 0.01 and 0.2 for 10 % of the labels, 0.02 and 5 for 1 %, both times 0.2 after epochs 12 and 16. The
last epoch is the result. It was made for ImageNet, and needs what it has there:
  steps     20 epochs are 1,000 steps at 1 %, 10,000 at 10 %; 600 images make 2 steps an epoch: give more --epochs or
            a smaller --batch (rates are scaled with the images a step)
  head rate 5 suits 1,000 classes; a classifier of few classes on long features diverges at it and takes the backbone
            along, so a published --head-lr is lowered to what the features bear; one that is given is taken as it is
  scale     windows of 8 % of the area are for photographs: for images of about 28 pixels give --scale 1 1
The images are those of --train-list (the published lists of ImageNet, say), else a share of each class, the same for a
--seed everywhere. --peers random is supervised training from scratch on the same images.

    evaluate.py semisup runs/demo --fraction 0.01 --peers random
    evaluate.py semisup swav_800ep_pretrain.pth.tar /data/imagenet --train-list 10percent.txt
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from evaluation.arguments import command_parser
from evaluation.classifiers.tuning import add_tuning, check_tuning, tuner
from evaluation.command import Evaluate, compare

RATES = {0.1: (0.01, 0.2), 0.01: (0.02, 5.0)}  # share of the labels -> learning rates of backbone and classifier


def main(arguments: list[str]) -> int:
    parser = command_parser("semisup", __doc__)
    parser.add_argument(
        "--fraction", type=float, default=0.1, help="share of the labels; 0.1 (default) and 0.01 have rates"
    )
    add_tuning(parser, epochs=20)
    return compare("semisup", parser.parse_args(arguments), check, prepare, open_fraction)


def check(options: argparse.Namespace) -> None:
    if not 0 < options.fraction <= 1:
        raise ValueError(f"--fraction={options.fraction}: expected more than 0, at most 1")
    if options.fraction not in RATES and None in (options.lr, options.head_lr):
        raise ValueError(
            f"--fraction={options.fraction}: rates are published for 0.1 and 0.01; give --lr and --head-lr"
        )
    check_tuning(options)


def open_fraction(options: argparse.Namespace, backbone: Any, place: Any) -> Any:
    """The labelled images, those to learn from cut down to the fraction unless a list names them."""
    from evaluation.session import open_labelled
    from evaluation.subsets import share_of_each_class

    data, path = open_labelled(options, backbone, place)
    if options.train_list is None:
        kept = share_of_each_class(data.train.label[data.train_rows], options.fraction, place.seed)
        data = replace(data, train_rows=data.train_rows[kept])
    if len(data.train_rows) < 2 * place.cluster.world_size:
        raise ValueError(f"--fraction={options.fraction} leaves {len(data.train_rows)} images: too few to train on")
    return data, path


def prepare(options: argparse.Namespace) -> Evaluate:
    published, limited = RATES.get(options.fraction, (None, None)), options.head_lr is None
    options.lr = published[0] if options.lr is None else options.lr
    options.head_lr = published[1] if limited else options.head_lr
    tune = tuner(options, "semisup", "steps", limited)
    return lambda backbone, data, place: tune(backbone, data, place, "semisup top1")
