"""Few-shot classification on frozen features: 1, 5 and 10 labeled images of each class, drawn several times.

The classifier is that of Tian et al., "Rethinking few-shot image classification", ECCV 2020: multinomial
logistic regression on features of length 1, with scikit-learn's penalty at C = 1 (--cost). Unlike there, an episode has
all classes of the data, and all test images are scored, as in low-shot evaluation of self-supervised networks (Assran
et al., "Masked Siamese networks", ECCV 2022). The figure is the mean over the draws with its 95 % interval.
A draw is a function of --seed and its number; 5 images include the 1 of the same draw. Where a class has fewer images,
all of them are taken. With classes of different size, also the mean of the classes' accuracies is given.

    evaluate.py fewshot runs/demo --peers random
    evaluate.py fewshot swav_800ep_pretrain.pth.tar /data/imagenet --shots 1,2,5 --draws 3
"""

from __future__ import annotations

import argparse

from evaluation.arguments import check_number, command_parser, numbers
from evaluation.command import Evaluate, Figures, compare


def main(arguments: list[str]) -> int:
    parser = command_parser("fewshot", __doc__)
    parser.add_argument("--shots", default="1,5,10", help="labeled images of each class, with commas (default 1,5,10)")
    parser.add_argument("--draws", type=int, default=10, help="how often they are drawn (default 10)")
    parser.add_argument("--cost", type=float, default=1.0, help="scikit-learn's C (default 1)")
    return compare("fewshot", parser.parse_args(arguments), check, prepare)


def check(options: argparse.Namespace) -> None:
    numbers("--shots", options.shots, whole=True)
    check_number(options, "cost")
    if options.draws < 1:
        raise ValueError(f"--draws={options.draws}: expected an integer of at least 1")


def prepare(options: argparse.Namespace) -> Evaluate:
    import torch
    from torch.nn.functional import normalize

    from common.progress import progress_bar
    from evaluation.classifiers.logistic import logistic_regression
    from evaluation.frozen_features import split_features
    from evaluation.repeats import half_width
    from evaluation.subsets import of_each_class

    shots = [int(count) for count in numbers("--shots", options.shots, whole=True)]

    def evaluate(backbone, data, session) -> Figures:
        train, test = (normalize(part) for part in split_features(backbone, data, session, options))
        labels, expected = torch.as_tensor(data.train_labels), torch.as_tensor(data.test_labels)
        cluster, jobs = session.cluster, [(count, draw) for count in shots for draw in range(options.draws)]
        shares = torch.zeros(len(jobs), 2, dtype=torch.float64, device=session.device)
        mine = range(cluster.rank, len(jobs), cluster.world_size)  # each process fits its share of the classifiers
        with progress_bar(len(mine), f"{backbone.word}: few-shot", "fit", cluster.main) as bar:
            for job in mine:
                count, draw = jobs[job]
                rows = torch.from_numpy(of_each_class(data.train_labels, count, session.seed, draw))
                chosen, points = labels[rows], train[rows].to(session.device)
                known, numbered = chosen.unique(return_inverse=True)  # a class may have no training image
                penalty = 1 / (options.cost * len(rows))
                weights, bias = logistic_regression(points, numbered.to(session.device), penalty)
                predicted = known[(test.to(session.device).double() @ weights.T + bias).argmax(1).cpu()]
                right = (predicted == expected).double()
                each = [right[expected == one].mean() for one in expected.unique()]
                shares[job] = torch.stack([right.mean(), torch.stack(each).mean()])
                bar.update()
        if cluster.world_size > 1:
            torch.distributed.all_reduce(shares)
        uneven = len(set(torch.bincount(expected)[expected.unique()].tolist())) > 1
        figures: Figures = {}
        for column, name in enumerate(["few-shot top1", *(["few-shot top1 by class"] if uneven else [])]):
            drawn = shares[:, column].view(len(shots), options.draws).tolist()
            figures[name] = {}
            for k, values in zip(shots, drawn, strict=True):
                figures[name][f"{k} images"] = sum(values) / len(values)
                if options.draws > 1:
                    figures[name][f"{k} images ±"] = half_width(values)
            figures[f"draws of {name}"] = [{"images": k, "each": v} for k, v in zip(shots, drawn, strict=True)]
        return figures

    return evaluate
