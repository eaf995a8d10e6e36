"""Labels of pixels carried over from the nearest patches of the training images; nothing is trained.

Balazevic et al., "Towards in-context scene understanding", NeurIPS 2023: every image is scaled to a square of --size
pixels; a memory holds patches of the training images with the classes of their pixels; a patch of a test image gets the
classes of its k nearest ones, weighted by softmax(cosine / temperature). Scored by mean intersection over union at the
masks' own size. DATA has the folders of Pascal VOC (memory from train, scores val) or of ADE20K.

    evaluate.py dense runs/demo VOCdevkit/VOC2012 --peers random
    evaluate.py dense timm:vit_small_patch16_dinov3.lvd1689m ADEChallengeData2016 --size 512 --patches 10240000
"""

from __future__ import annotations

import argparse

from evaluation.arguments import check_number, command_parser
from evaluation.command import Evaluate, Figures, compare
from evaluation.commands.segment import add_classes, check_dense, dense_maps, open_images


def main(arguments: list[str]) -> int:
    parser = command_parser("dense", __doc__)
    parser.add_argument("--k", type=int, default=30, help="nearest patches (default 30)")
    parser.add_argument("--temperature", type=float, default=0.02, help="of the weights (default 0.02)")
    parser.add_argument("--patches", type=int, default=1_024_000, help="in the memory, about (default 1024000)")
    add_classes(parser)
    return compare("dense", parser.parse_args(arguments), check, prepare, open_images)


def check(options: argparse.Namespace) -> None:
    check_number(options, "temperature")
    for name in ("k", "patches"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}={getattr(options, name)}: expected an integer of at least 1")
    check_dense(options)


def prepare(options: argparse.Namespace) -> Evaluate:
    from evaluation.dense.confusion import scores
    from evaluation.dense.propagation import memory, score

    def evaluate(backbone, data, session) -> Figures:
        maps, crops = dense_maps(backbone, session, options)
        title = f"{backbone.word}: patches"
        bank, labels = memory(maps, data, crops, options.patches, session, title)
        matrix = score(maps, bank, labels, data, crops, options.k, options.temperature, session, f"{title}, test")
        return {**scores(matrix), "patches": len(bank)}

    return evaluate
