"""Semi-supervised learning: fine-tunes the whole network on the labels of a few images.

The published protocol: 20 epochs, SGD with momentum 0.9, no weight decay, 256 images per step. Learning rates of
backbone and new classifier are 0.01 and 0.2 for 10 % of the labels, 0.02 and 5 for 1 %; both are multiplied by 0.2
after epochs 12 and 16. The last epoch is the result. The protocol was made for ImageNet; on other data mind:
  steps     20 epochs are 1,000 steps at 1 %, 10,000 at 10 %. 600 images make 2 steps per epoch: give more --epochs or
            a smaller --batch (rates are scaled with the images per step)
  head rate 5 suits 1,000 classes. A classifier with few classes on long features diverges at it and ruins the
            backbone, so the published --head-lr is lowered where needed; a given --head-lr is never changed
  scale     crops of 8 % of the area are for photographs; for images of about 28 pixels give --scale 1 1
The images are those of --train-list (e.g. the published lists of ImageNet), or else a share of each class, which is the
same on every machine for a --seed. --peers random trains from scratch on the same images.

    evaluate.py semisup runs/demo --fraction 0.01 --peers random
    evaluate.py semisup swav_800ep_pretrain.pth.tar /data/imagenet --train-list 10percent.txt
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from evaluation.arguments import add_seeds, command_parser
from evaluation.classifiers.tuning import BATCH_NORM, add_tuning, check_tuning, tuner
from evaluation.command import Evaluate, compare

RATES = {0.1: (0.01, 0.2), 0.01: (0.02, 5.0)}  # share of the labels -> learning rates of backbone and classifier


def main(arguments: list[str]) -> int:
    parser = command_parser("semisup", __doc__)
    parser.add_argument(
        "--fraction", type=float, default=0.1, help="share of the labels; 0.1 (default) and 0.01 have published rates"
    )
    add_seeds(parser)
    add_tuning(parser, epochs=20)
    return compare("semisup", parser.parse_args(arguments), check, prepare, open_fraction)


def check(options: argparse.Namespace) -> None:
    if not 0 < options.fraction <= 1:
        raise ValueError(f"--fraction={options.fraction}: expected more than 0, at most 1")
    if options.fraction not in RATES and None in (options.lr, options.head_lr):
        raise ValueError(
            f"--fraction={options.fraction}: published rates exist for 0.1 and 0.01 only; give --lr and --head-lr"
        )
    check_tuning(options)


def open_fraction(options: argparse.Namespace, backbone: Any, session: Any) -> Any:
    """The labeled images; the training images are reduced to the fraction unless a list names them."""
    from evaluation.session import open_labelled, require_images
    from evaluation.subsets import share_of_each_class

    data, path = open_labelled(options, backbone, session)
    if options.train_list is None:
        kept = share_of_each_class(data.train.label[data.train_rows], options.fraction, session.seed)
        data = replace(data, train_rows=data.train_rows[kept])
    require_images(data, path, session, BATCH_NORM)
    return data, path


def prepare(options: argparse.Namespace) -> Evaluate:
    published, limited = RATES.get(options.fraction, (None, None)), options.head_lr is None
    options.lr = published[0] if options.lr is None else options.lr
    options.head_lr = published[1] if limited else options.head_lr
    tune = tuner(options, "semisup", "steps", limited)
    return lambda backbone, data, session: tune(backbone, data, session, "semisup top1")
