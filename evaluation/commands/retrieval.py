"""Retrieval: the training images are the gallery, the test images are the queries; nothing is trained.

recall at k: one of the k nearest images (by cosine) has the query's class. precision at k: the share of them that has
it. mAP at R: average precision over the first R, the number of gallery images of the class.

    evaluate.py retrieval runs/demo --sheet neighbors.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.arguments import check_out, command_parser, numbers
from evaluation.command import Evaluate, Figures, compare

SHOWN = 9  # neighbors of a query on the sheet


def main(arguments: list[str]) -> int:
    parser = command_parser("retrieval", __doc__)
    parser.add_argument("--k", default="1,5,10", help="numbers of retrieved images, with commas (default 1,5,10)")
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="write a picture of queries and their neighbors by the first CKPT"
    )
    parser.add_argument("--queries", type=int, default=12, help="on the sheet (default 12)")
    return compare("retrieval", parser.parse_args(arguments), check, prepare)


def check(options: argparse.Namespace) -> None:
    numbers("--k", options.k, whole=True)
    check_out("--sheet", options.sheet)
    if options.queries < 1:
        raise ValueError(f"--queries={options.queries}: expected an integer of at least 1")


def prepare(options: argparse.Namespace) -> Evaluate:
    import numpy as np
    import torch
    from torch.nn.functional import normalize

    from evaluation.frozen_features import split_features
    from evaluation.report.pictures import neighbor_sheet
    from evaluation.retrieval import nearest, retrieval_sums

    counts = [int(k) for k in numbers("--k", options.k, whole=True)]

    def evaluate(backbone, data, session) -> Figures:
        gallery, queries = (
            normalize(part).to(session.device) for part in split_features(backbone, data, session, options)
        )
        mine = slice(session.cluster.rank, None, session.cluster.world_size)
        labels = (torch.as_tensor(one, device=session.device) for one in (data.train_labels, data.test_labels[mine]))
        gallery_labels, query_labels = labels
        sums = retrieval_sums(gallery, gallery_labels, queries[mine], query_labels, counts)
        if session.cluster.world_size > 1:
            torch.distributed.all_reduce(sums)
        mean = (sums / len(queries)).tolist()
        if options.sheet is not None and session.cluster.main and backbone.word == options.backbone:
            chosen = np.linspace(0, len(queries) - 1, min(options.queries, len(queries))).astype(int)
            _, index = nearest(gallery, queries[torch.as_tensor(chosen)], SHOWN)
            neighbor_sheet(data, chosen, index.cpu().numpy()).save(options.sheet)
        return {
            "recall": {f"at {k}": value for k, value in zip(counts, mean, strict=False)},
            "precision": {f"at {k}": value for k, value in zip(counts, mean[len(counts) :], strict=False)},
            "mAP at R": mean[-1],
        }

    return evaluate
