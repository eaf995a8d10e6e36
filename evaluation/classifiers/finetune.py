"""Fine-tunes the whole network with labels: a new linear layer on the backbone, with separate learning rates.

SwAV's semi-supervised protocol: SGD, momentum 0.9, no weight decay, 20 epochs of 256 images per step, both rates times
0.2 after epochs 12 and 16; RandomResizedCrop and flip; batch norm is trained too, synchronized over all processes.
"""

from __future__ import annotations

import copy
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.progress import counted, progress_bar
from evaluation.backbones import Backbone
from evaluation.progress import average_, load_progress, save_progress
from evaluation.session import MAX_BAD, Session, training_loader
from evaluation.subsets import take
from model.backbone import stride_outside, weights_channels_last
from model.batchnorm import replace_batch_norm
from pipeline.crops import Crops
from pipeline.dataset.labelled import Labelled
from pipeline.loader import evaluation_batches


@dataclass(frozen=True)
class Tuning:
    """rate, head_rate: learning rates of backbone and classifier. schedule: "steps" (times 0.2 after 60 % and 80 % of
    the epochs) or "cosine" (to 0, by epochs). every_epoch: score after each epoch, not only after the last."""

    rate: float
    head_rate: float
    epochs: int = 20
    weight_decay: float = 0.0
    schedule: str = "steps"
    every_epoch: bool = False


def factor(schedule: str, epoch: int, epochs: int) -> float:
    """The factor of both learning rates in an epoch."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return 0.2 ** sum(epoch >= round(share * epochs) for share in (0.6, 0.8))


class Classifier(nn.Module):
    """Logits of images: a linear layer on the backbone's features."""

    def __init__(self, backbone: nn.Module, dim: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.backbone(images).float().flatten(1))


def finetune(
    backbone: Backbone,
    data: Labelled,
    central: Crops,
    training: Crops,
    tuning: Tuning,
    session: Session,
    progress: Path | None,
    what: str,
) -> list[float]:
    """Train on data.train_rows; returns top-1 on data.test_rows after the last epoch, or after each. `backbone` itself
    does not change.

    progress: file to resume from and to save to after each epoch, deleted at the end; None: no file.
    """  # fmt: skip
    cluster, table = session.cluster, take(data.train, data.train_rows)
    labels = torch.as_tensor(data.train_labels)
    torch.manual_seed(session.seed)
    network = Classifier(copy.deepcopy(backbone.network), backbone.feature_dim, len(data.classes)).to(session.device)
    weights_channels_last(network)
    if session.device.type == "cpu":
        stride_outside(network)
    if cluster.world_size > 1:
        replace_batch_norm(network, 0, cluster.world_size, cluster.rank)
    groups = [
        {"params": list(network.backbone.parameters()), "base": tuning.rate},
        {"params": list(network.fc.parameters()), "base": tuning.head_rate},
    ]
    optimizer = torch.optim.SGD(groups, lr=tuning.rate, momentum=0.9, weight_decay=tuning.weight_decay)
    curves = load_progress(progress, network, optimizer)
    loader = training_loader(session, table, training, len(curves))
    with closing(loader), progress_bar(tuning.epochs * len(loader), what, "step", cluster.main) as bar:
        bar.update(len(curves) * len(loader))
        for epoch in range(len(curves), tuning.epochs):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor(tuning.schedule, epoch, tuning.epochs)
            network.train()
            for images in loader:
                with session.precision():
                    logits = network(images.crops[0].to(session.device, torch.float32)).float()
                loss = functional.cross_entropy(logits, labels[torch.as_tensor(images.rows)].to(session.device))
                optimizer.zero_grad()
                loss.backward()
                average_([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
                optimizer.step()
                bar.update()
            average_([buffer for buffer in network.buffers() if buffer.is_floating_point()])
            scored = tuning.every_epoch or epoch + 1 == tuning.epochs
            curves.append([_accuracy(network, data, central, session)] if scored else [])
            if progress is not None and cluster.main:
                save_progress(progress, network, optimizer, curves)
    if progress is not None and cluster.main:
        progress.unlink(missing_ok=True)
    return [score for scores in curves for score in scores]


@torch.no_grad()
def _accuracy(network: nn.Module, data: Labelled, central: Crops, session: Session) -> float:
    """Share of data.test_rows that are classified right; each process scores its own part of them."""
    network.eval()
    rows = data.test_rows[session.cluster.rank :: session.cluster.world_size]
    right = 0
    batches = evaluation_batches(
        data.test, rows, central, backend=session.backend_for(data.test),
        batch_size=max(1, min(session.batch, len(rows))), threads=session.threads, device_id=session.device_id,
        max_bad_fraction=MAX_BAD,
    )  # fmt: skip
    with progress_bar(len(rows), "test", "img", session.cluster.main) as bar:
        for images in counted(batches, bar, lambda batch: len(batch.rows)) if len(rows) else ():
            with session.precision():
                predicted = network(images.crops[0].to(session.device, torch.float32)).argmax(1).cpu()
            right += int((predicted == torch.as_tensor(data.numbers(data.test.label[images.rows]))).sum())
    return session.cluster.add_up([right])[0] / len(data.test_rows)
