"""Trains linear classifiers on a frozen backbone by the published protocol, several learning rates in one pass.

SwAV's code: RandomResizedCrop and flip; weights normal(0, 0.01), bias 0; SGD, momentum 0.9, weight decay 1e-6; learning
rate 0.3 at 256 images per step, cosine to 0 by epochs; 100 epochs. The backbone stays in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from common.progress import progress_bar
from evaluation.progress import average_, load_progress, save_progress
from evaluation.session import Session, training_loader
from evaluation.subsets import take
from pipeline.crops import Crops
from pipeline.dataset.labelled import Labelled


@dataclass(frozen=True)
class Protocol:
    """rates: learning rates, one classifier each. batch_norm: put batch norm in front of each classifier."""

    rates: tuple[float, ...]
    epochs: int = 100
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-6
    batch_norm: bool = False


def cosine(rate: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch: from `rate` towards 0, constant within the epoch."""
    return rate * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def classifier(dim: int, classes: int, batch_norm: bool) -> nn.Sequential:
    """A linear layer with the protocol's initial weights, after batch norm if `batch_norm`."""
    layer = nn.Linear(dim, classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(*([nn.BatchNorm1d(dim)] if batch_norm else []), layer)


def train_classifiers(
    function: Callable[[Tensor], Tensor],
    test: Float[Tensor, "test features"],
    data: Labelled,
    crops: Crops,
    protocol: Protocol,
    session: Session,
    progress: Path | None,
    what: str = "linear",
) -> list[list[float]]:
    """Top-1 on the test images after each epoch: one list per learning rate.

    function: images to features; crops: of training; test: features of data.test_rows.
    progress: file to resume from and to save to after each epoch, deleted at the end; None: no file.
    """
    table, cluster = take(data.train, data.train_rows), session.cluster
    features, expected = (part.to(session.device) for part in (test, torch.as_tensor(data.test_labels)))
    torch.manual_seed(session.seed)
    made = [classifier(features.shape[1], len(data.classes), protocol.batch_norm) for _ in protocol.rates]
    heads = nn.ModuleList(made).to(session.device)
    optimizer = torch.optim.SGD(
        [{"params": list(head.parameters()), "lr": rate} for head, rate in zip(heads, protocol.rates, strict=True)],
        lr=protocol.rates[0],
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )
    curves = load_progress(progress, heads, optimizer)
    loader = training_loader(session, table, crops, len(curves))
    labels = torch.as_tensor(data.train_labels)
    total = protocol.epochs * len(loader)
    with closing(loader), progress_bar(total, what, "step", cluster.main) as bar:
        bar.update(len(curves) * len(loader))
        for epoch in range(len(curves), protocol.epochs):
            for group, rate in zip(optimizer.param_groups, protocol.rates, strict=True):
                group["lr"] = cosine(rate, epoch, protocol.epochs)
            heads.train()
            for images in loader:
                with torch.no_grad(), session.precision():
                    inputs = function(images.crops[0].to(session.device, torch.float32)).float()
                target = labels[torch.as_tensor(images.rows)].to(session.device)
                loss = torch.stack([functional.cross_entropy(head(inputs), target) for head in heads]).sum()
                optimizer.zero_grad()
                loss.backward()
                average_([parameter.grad for parameter in heads.parameters() if parameter.grad is not None])
                optimizer.step()
                bar.update()
            average_([buffer for buffer in heads.buffers() if buffer.is_floating_point()])
            curves.append(_scores(heads.eval(), features, expected))
            if progress is not None and cluster.main:
                save_progress(progress, heads, optimizer, curves)
    if progress is not None and cluster.main:
        progress.unlink(missing_ok=True)
    return [list(curve) for curve in zip(*curves, strict=True)]


@torch.no_grad()
def _scores(heads: nn.ModuleList, features: Tensor, expected: Tensor) -> list[float]:
    return [float((head(features).argmax(1) == expected).double().mean()) for head in heads]
