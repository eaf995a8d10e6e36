"""A linear support vector machine per class on frozen features, scored by mean average precision.

DATA is a Pascal VOC folder (VOCdevkit/VOC2007: trains on trainval, scores test, difficult objects do not count), or
images in folders by class, where top-1 is given too. The cost of each class is chosen by cross validation on the
training images. mAP is the area under precision over recall; "mAP 11 points" is VOC 2007's own measure.

    evaluate.py svm swav_800ep_pretrain.pth.tar VOCdevkit/VOC2007
    evaluate.py svm runs/demo --costs 1
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from evaluation.arguments import command_parser, numbers
from evaluation.command import Evaluate, Figures, compare


def main(arguments: list[str]) -> int:
    parser = command_parser("svm", __doc__)
    parser.add_argument("--costs", default="0.001,0.01,0.1,1,10,100", help="costs to choose from, with commas")
    parser.add_argument("--folds", type=int, default=3, help="of the cross validation (default 3)")
    options = parser.parse_args(arguments)
    return compare("svm", options, check, prepare, open_images)


def check(options: argparse.Namespace) -> None:
    numbers("--costs", options.costs)
    if options.folds < 2:
        raise ValueError(f"--folds={options.folds}: expected an integer of at least 2")
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("svm needs scikit-learn: .venv/bin/python -m pip install scikit-learn")


def open_images(options: argparse.Namespace, backbone, session):
    """The images of a VOC folder or of folders by class. Stores in options.targets whether it is VOC, and the targets
    of training and test images: (images, classes), 1, -1, or 0 for an image that does not count."""
    import numpy as np

    from evaluation.session import open_labelled
    from evaluation.voc import is_voc, open_voc
    from pipeline.dataset.table import DatasetError

    voc, path = options.data is not None and is_voc(Path(options.data)), options.data
    if voc:
        data, train, test = open_voc(Path(path), options.tables, session.cluster.main)
    else:
        data, path = open_labelled(options, backbone, session)
        every = np.arange(len(data.classes))
        train, test = (np.where(one[:, None] == every, 1, -1) for one in (data.train_labels, data.test_labels))
    if not ((train > 0).any(0) & (train < 0).any(0) & (test > 0).any(0)).any():
        raise DatasetError(f"DATA={path}: no class has training images, others beside them, and images to score")
    options.targets = voc, train, test
    return data, path


def prepare(options: argparse.Namespace) -> Evaluate:
    import numpy as np
    import torch
    from torch.nn.functional import normalize

    from common.progress import progress_bar
    from evaluation.classifiers.svm import average_precision, eleven_points, fit_classes
    from evaluation.frozen_features import split_features

    (voc, train_targets, test_targets), costs = options.targets, numbers("--costs", options.costs)
    del options.targets  # not a setting: keep it out of the result file

    def evaluate(backbone, data, session) -> Figures:
        train, test = (normalize(part).double().numpy() for part in split_features(backbone, data, session, options))
        cluster = session.cluster
        mine = range(cluster.rank, train_targets.shape[1], cluster.world_size)
        with progress_bar(len(mine), f"{backbone.word}: svm", "class", cluster.main) as bar:
            fitted = fit_classes(train, train_targets, test, costs, options.folds, session.threads, mine, bar)
        scores, chosen = fitted.scores, np.array([cost or 0.0 for cost in fitted.costs])
        if cluster.world_size > 1:  # each process has the columns of its own classes
            summed = torch.from_numpy(np.nan_to_num(np.vstack([scores, chosen]))).to(session.device)
            torch.distributed.all_reduce(summed)
            scores, chosen = summed[:-1].cpu().numpy(), summed[-1].cpu().numpy()
            scores[:, chosen == 0] = np.nan  # a class without positive or without negative examples
        scored = [
            i
            for i in range(train_targets.shape[1])
            if (test_targets[:, i] > 0).any() and np.isfinite(scores[:, i]).all()
        ]
        each = {i: average_precision(scores[:, i], test_targets[:, i]) for i in scored}
        known = data.train.classes
        names = known if voc else [known[one] if known else str(one) for one in data.classes]
        figures: Figures = {
            "mAP": float(np.mean(list(each.values()))),
            "mAP 11 points": float(np.mean([eleven_points(scores[:, i], test_targets[:, i]) for i in scored])),
        }
        if not voc:
            figures["svm top1"] = float((np.nan_to_num(scores, nan=-np.inf).argmax(1) == data.test_labels).mean())
        return figures | {"classes": [{"class": names[i], "AP": each[i], "cost": float(chosen[i])} for i in scored]}

    return evaluate
