"""Weighted k-nearest-neighbor classification on frozen features (Wu et al., CVPR 2018); nothing is trained.

Each of the k nearest images by cosine similarity votes for its class with exp(similarity / temperature). All k take
one pass. The figure usually quoted is k = 20 at temperature 0.07.

    evaluate.py knn runs/demo
    evaluate.py knn swav_800ep_pretrain.pth.tar /data/imagenet --peers random torchvision:resnet50
"""

from __future__ import annotations

import argparse

from evaluation.arguments import check_number, command_parser, numbers
from evaluation.command import Evaluate, Figures, compare


def main(arguments: list[str]) -> int:
    parser = command_parser("knn", __doc__)
    parser.add_argument(
        "--k", default="10,20,100,200", help="numbers of neighbors, with commas (default 10,20,100,200)"
    )
    parser.add_argument("--temperature", type=float, default=0.07, help="of the votes (default 0.07)")
    return compare("knn", parser.parse_args(arguments), check, prepare)


def check(options: argparse.Namespace) -> None:
    numbers("--k", options.k, whole=True)
    check_number(options, "temperature")


def prepare(options: argparse.Namespace) -> Evaluate:
    import torch

    from evaluation.features import bank_dtype, unit_rows
    from evaluation.frozen_features import split_features
    from model.nearest import predict_each

    neighbors = [int(k) for k in numbers("--k", options.k, whole=True)]

    def evaluate(backbone, data, session) -> Figures:
        train, test = split_features(backbone, data, session, options)
        cluster = session.cluster
        mine = slice(cluster.rank, None, cluster.world_size)  # every process classifies its share of the test
        expected = torch.as_tensor(data.test_labels[mine], device=session.device)
        predictions = predict_each(
            unit_rows(train, session.device, bank_dtype(session.device)),
            torch.as_tensor(data.train_labels, device=session.device),
            unit_rows(test[mine], session.device),
            neighbors,
            options.temperature,
        )
        right = cluster.add_up([int((classes == expected).sum()) for classes in predictions])
        return {"k-NN top1": {f"k={k}": n / len(data.test_rows) for k, n in zip(neighbors, right, strict=True)}}

    return evaluate
