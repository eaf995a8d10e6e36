"""Evaluates pre-trained backbones: every evaluation of the paper and a few more, on the same fast pipelines.

    .venv/bin/python evaluate.py COMMAND CKPT [DATA] [options]       one process
    .venv/bin/torchrun --standalone --nproc-per-node=8 evaluate.py COMMAND CKPT [DATA] [options]

    knn         weighted k nearest neighbors, several k in one pass
    linear      a linear classifier by the published protocol; --cached: logistic regression
    semisup     the whole network fine-tuned on 1 % or 10 % of the labels
    fewshot     1, 5, 10 labeled images of each class, several draws: mean and 95 % interval
    transfer    other images: k-NN, logistic regression, fine-tuning
    svm         a linear SVM per class, mean average precision: Pascal VOC or folders
    retrieval   nearest images: recall and precision at k, mAP at R
    segment     a linear layer on the maps, mean IoU: folders of Pascal VOC or ADE20K
    dense       labels of pixels from the nearest patches of other images, mean IoU
    clusters    the prototype of each image as a table, and pictures of the clusters
    report      one HTML page with result files side by side, and pictures

CKPT is any backbone:
    runs/demo                      a run's latest checkpoint, or one of its checkpoints/step-...
    swav_800ep_pretrain.pth.tar    a file of weights: published SwAV's, torchvision's or timm's layout for ResNets
    export                         a folder or file written by `make export FORMAT=safetensors`
    FILE@NETWORK                   weights for the network of that name
    torchvision:NAME, timm:NAME    a network with that library's own weights
    RUN@module:function            a run or export whose backbone is your own code: no file starts it by itself
    random@NETWORK                 random weights; `random` alone, as a peer: for the first backbone's network
    NETWORK is timm:NAME, torchvision:NAME, transformers:NAME, module:function, one of ours (resnet50w2) or a recipe
    (config/demo.yaml).

DATA is anything that data.path accepts, with a sub-folder for each class; default: the run's own data. Features are
cached in data/features by weights, images and crops. `evaluate.py COMMAND --help` prints all options. Exit codes: 0
done, 2 a mistake in the arguments, the weights or the data, reported in one line.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from common.cli import EXIT_MISTAKE, print_error

COMMANDS = (
    "knn",
    "linear",
    "fewshot",
    "semisup",
    "transfer",
    "svm",
    "retrieval",
    "segment",
    "dense",
    "clusters",
    "report",
)


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"perhaps {near[0]}" if near else f"give one of {', '.join(COMMANDS)}"
        print_error(f"{command!r} is not a command of evaluate.py; {hint}")
        return EXIT_MISTAKE
    return importlib.import_module(f"evaluation.commands.{command}").main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
