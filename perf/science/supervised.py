"""Supervised training from scratch, as a reference: the same network, all labels, cross entropy.

    python -m perf.science.supervised OUT RECIPE DATA --epochs N --seed S

SGD with Nesterov momentum, batches of 128, a cosine schedule to 0; crops of at least half the image, and flips. Writes
OUT/epoch-NNN.safetensors (backbone and classifier; every --keep epochs, and the last) and, at the end, OUT/summary.json
with the CPU seconds of training after each epoch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from common.cli import Parser, at_least

RATE, MOMENTUM, DECAY, BATCH, SCALE = 0.1, 0.9, 5e-4, 128, (0.5, 1.0)


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.science.supervised", __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipe", help="gives the network and the normalization of the images")
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=at_least(1), required=True)
    parser.add_argument("--seed", type=at_least(0), required=True)
    parser.add_argument("--keep", type=at_least(1), default=1, help="epochs between two files of weights")
    parser.add_argument("--tables", default="data/tables")
    train(parser.parse_args(arguments))
    return 0


def train(options: argparse.Namespace) -> None:
    """Train; continues an interrupted training after its last whole epoch."""
    import torch
    from safetensors.torch import save_file

    from common.files import write_atomically
    from common.progress import progress_bar
    from evaluation.backbones import open_backbone
    from evaluation.classifiers.finetune import Classifier
    from evaluation.progress import load_progress, save_progress
    from evaluation.session import training_crops, training_loader
    from evaluation.subsets import take
    from model.backbone import stride_outside
    from perf.science.score import central_crops_of, labelled_at, one_process

    options.out.mkdir(parents=True, exist_ok=True)
    data = labelled_at(options.data, options.tables)
    table = take(data.train, data.train_rows)
    session = one_process(min(BATCH, len(table)), options.seed)
    backbone = open_backbone(f"random@{options.recipe}", options.seed)
    labels = torch.as_tensor(data.train_labels)
    network = Classifier(backbone.network, backbone.feature_dim, len(data.classes))
    stride_outside(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    crops = training_crops(central_crops_of(backbone), SCALE)

    resume = options.out / "progress.safetensors"
    epochs: list[Any] = load_progress(resume, network, optimizer)  # for each epoch [CPU seconds of training so far]
    loader = training_loader(session, table, crops, len(epochs))
    earlier_seconds, began = epochs[-1][0] if epochs else 0.0, time.process_time()
    steps, step = options.epochs * len(loader), len(epochs) * len(loader)
    with closing(loader), progress_bar(steps, options.out.name, "step", True) as bar:
        bar.update(step)
        for epoch in range(len(epochs), options.epochs):
            network.train()
            for images in loader:
                for group in optimizer.param_groups:
                    group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
                logits = network(images.crops[0].float())
                loss = torch.nn.functional.cross_entropy(logits, labels[torch.as_tensor(images.rows)])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                bar.update()
            epochs.append([earlier_seconds + time.process_time() - began])
            if (epoch + 1) % options.keep == 0 or epoch + 1 == options.epochs:
                weights = {name.removeprefix("backbone."): value for name, value in network.state_dict().items()}
                save_file(weights, options.out / f"epoch-{epoch + 1:03d}.safetensors")
            save_progress(resume, network, optimizer, epochs)
    summary = {"epochs": options.epochs, "training_seconds": [seconds for (seconds,) in epochs]}
    write_atomically(options.out / "summary.json", json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
