"""What a pre-trained backbone is worth: every evaluation of the paper, and a few more, on the same fast pipelines.

    .venv/bin/python evaluate.py COMMAND CKPT [DATA] [options]       one process
    .venv/bin/torchrun --standalone --nproc-per-node=8 evaluate.py COMMAND CKPT [DATA] [options]

    knn         weighted k nearest neighbours, several k in one pass
    linear      a linear classifier by the published protocol; --cached: logistic regression
    semisup     the whole network fine-tuned on 1 % or 10 % of the labels
    transfer    other images: k-NN, logistic regression, fine-tuning
    svm         a linear SVM for each class, mean average precision: Pascal VOC or folders
    retrieval   nearest images: recall and precision at k, mAP at R
    clusters    the prototype of each image as a table, and pictures of the clusters
    report      result files side by side and pictures, in one HTML page

CKPT is any backbone:
    runs/demo                      a run's latest checkpoint, or one of its checkpoints/step-...
    swav_800ep_pretrain.pth.tar    a file of weights: published SwAV's, torchvision's or timm's layout for ResNets
    export                         a folder or file that `make export FORMAT=safetensors` wrote
    FILE@NETWORK                   weights for the network of that name
    torchvision:NAME, timm:NAME    with that library's own weights
    random@NETWORK                 random weights; random alone, as a peer: of the first backbone's network
    NETWORK is timm:NAME, torchvision:NAME, one of ours (resnet50w2) or a recipe (config/demo.yaml).

DATA is what a recipe's data.path may be, with a sub-folder for each class; left out, it is the run's own. Features are
kept in data/features by weights, images and crops. `evaluate.py COMMAND --help` tells the rest. Exit codes: 0 done,
2 a mistake in the arguments, the weights or the data, in one line.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from common.cli import EXIT_MISTAKE, print_error

COMMANDS = ("knn", "linear", "semisup", "transfer", "svm", "retrieval", "clusters", "report")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        told = f"perhaps {near[0]}" if near else f"there are {', '.join(COMMANDS)}"
        print_error(f"{command!r} is no command of evaluate.py; {told}")
        return EXIT_MISTAKE
    return importlib.import_module(f"evaluation.commands.{command}").main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
