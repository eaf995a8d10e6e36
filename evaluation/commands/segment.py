"""Linear segmentation of images on frozen features: mean intersection over union.

Batch norm and a linear layer on the last map of the frozen backbone, after DINOv2's linear evaluation (Oquab et al.,
TMLR 2024) without warm-up: random scale from 0.5 to 2, random crop, flip; AdamW, learning rate 1e-3, weight decay 1e-4,
falling linearly to 0. Scored at the masks' own size with sliding windows that overlap by a third. DATA has the folders
of Pascal VOC (trains on train, scores val; 21 classes) or of ADE20K (150 classes).

    evaluate.py segment swav_800ep_pretrain.pth.tar VOCdevkit/VOC2012 --size 512 --batch 16
    evaluate.py segment runs/demo ADEChallengeData2016 --steps 10000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evaluation.arguments import add_seeds, check_number, command_parser
from evaluation.command import Evaluate, Figures, compare

UNUSED = ("test", "image", "label", "bands", "pages", "train_list", "test_list")


def main(arguments: list[str]) -> int:
    parser = command_parser("segment", __doc__)
    parser.set_defaults(batch=16)
    parser.add_argument("--steps", type=int, default=40_000, help="of training, --batch images each (default 40000)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default 0.001)")
    add_seeds(parser)
    add_classes(parser)
    return compare("segment", parser.parse_args(arguments), check, prepare, open_images)


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add --classes."""
    parser.add_argument("--classes", type=int, help="of the masks; default: 21 for VOC's folders, 150 for ADE20K's")


def check(options: argparse.Namespace) -> None:
    check_number(options, "lr")
    if options.steps < 1:
        raise ValueError(f"--steps={options.steps}: expected an integer of at least 1")
    check_dense(options)


def check_dense(options: argparse.Namespace) -> None:
    """Raises ValueError for arguments that images with masks do not have."""
    for name in UNUSED:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: DATA's own folders say what is trained on and scored")
    if options.data is None:
        raise ValueError("DATA is missing: give a folder of Pascal VOC or ADE20K with masks")
    if options.pool:
        raise ValueError(f"--pool={options.pool}: maps are not pooled here")
    if options.classes is not None and not 2 <= options.classes <= 254:
        raise ValueError(f"--classes={options.classes}: expected an integer from 2 to 254")


def open_images(options: argparse.Namespace, backbone: Any, session: Any) -> Any:
    """The images with their masks, and DATA."""
    from evaluation.dense.masks import open_masked

    return open_masked(Path(options.data), options.classes), options.data


def prepare(options: argparse.Namespace) -> Evaluate:
    import torch

    from evaluation.dense.confusion import scores
    from evaluation.dense.linear import score, train_layer

    def evaluate(backbone, data, session) -> Figures:
        maps, crops = dense_maps(backbone, session, options)
        size = crops.views[0].size
        channels = maps(torch.zeros(1, 3, size, size, device=session.device)).shape[1]
        title = f"{backbone.word}: segmentation"
        layer = train_layer(maps, channels, data, crops, options.steps, options.lr, session, title)
        return scores(score(lambda images: layer(maps(images)), data, crops, session, f"{title}, test"))

    return evaluate


def dense_maps(backbone: Any, session: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """The function from images to maps, and the crops that it takes. Raises UnsuitableArgument."""
    import torch

    from evaluation.command import UnsuitableArgument
    from evaluation.dense.maps import map_function
    from evaluation.session import central_crops
    from model.backbone import weights_channels_last

    network = weights_channels_last(backbone.network.to(session.device)).eval()
    crops = central_crops(backbone, options)
    size = crops.views[0].size
    try:
        maps = map_function(network, options.stage, session.precision)
        maps(torch.zeros(1, 3, size, size, device=session.device))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UnsuitableArgument(" ".join(str(error).split())[:300]) from None
    return maps, crops
