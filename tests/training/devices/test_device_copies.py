"""A step on a (fake) GPU reads no value on the host and makes no blocking copy between host and device: in every
method (DeepCluster-v2 and SeLa-v2 share the step with clusters), with one head and several, teacher and probe, and in a
distillation.

On a real GPU each of these waits until the device has finished all queued work. The tensors are torch's fake ones on
"cuda": operations run without a device and without values, so reading a value is an error by itself.
"""

import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config.recipe import ROOT
from model.backbone import build_backbone
from model.batchnorm import replace_batch_norm
from model.clustering.memory import Memory
from model.clustering.targets import EpochTargets
from model.distillation import FrozenTeacher
from model.monitor import CodeMonitor
from model.objective import Objective
from model.optimizer.groups import parameter_groups
from model.optimizer.lars import LARS
from model.probe import Probe
from model.queue import EmbeddingQueue
from model.swav import SwAV
from model.teacher import Teacher

BATCH, DIM, PROTOTYPES, IMAGES = 8, 16, 30, 64
OPTIONS = {"block": "basic", "layers": (1, 1), "base_width": 8}


class Waits(TorchDispatchMode):
    """Counts the operations for which a host would wait for its GPU, by kind and calling line."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        result = function(*args, **kwargs)
        devices = {tensor.device.type for tensor in given if tensor.ndim}
        made = {leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        if "index" in name and len(devices) > 1:
            self.waits[f"index on the host: {name} {calling_line()}"] += 1
        elif name in ("_to_copy", "copy_") and len(devices | made) > 1:
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if blocking:
                self.waits[f"blocking copy: {name} {calling_line()}"] += 1
        return result


def calling_line():
    """The innermost line of swave that called the operation."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def build_network(device, heads):
    with device:
        return SwAV(build_backbone("resnet", **OPTIONS), 32, DIM, PROTOTYPES, heads=heads)


class Step:
    """The step of train.py on a fake GPU, without DeepSpeed and the teacher's update, which take no fake tensors."""

    def __init__(
        self, assigning=(0, 1), heads=1, hard=False, queue=False, teacher=False, probe=False, clusters=False, distill=()
    ):
        self.device = device = torch.device("cuda", 0)
        self.network = build_network(device, heads)
        replace_batch_norm(self.network, 1, 1, 0)
        self.optimizer = LARS(parameter_groups(self.network), lr=0.1)
        self.objective = Objective(assigning, 0.05, 3, 0.1, PROTOTYPES, heads, hard, distilled=bool(distill))
        self.monitor = CodeMonitor(PROTOTYPES, DIM, device, heads)
        self.crops = [
            torch.randn(2 * BATCH, 3, 32, 32, device=device),
            torch.randn(3 * BATCH, 3, 16, 16, device=device),
        ]
        length = len(distill or assigning)
        self.queue = EmbeddingQueue(length, 2 * BATCH, DIM, global_batch=BATCH, device=device) if queue else None
        self.teacher = None
        if teacher:  # fake tensors can be neither copied nor converted, so the teacher gets another fake network
            copied = mock.patch("copy.deepcopy", lambda _: build_network(device, heads))
            with copied, mock.patch.object(torch.nn.Module, "float", lambda module: module):
                self.teacher = Teacher(self.network, assigning)
        if distill:
            undigested = mock.patch(
                "model.distillation._digest", lambda _: None
            )  # of its weights, which have no values
            with undigested, mock.patch.object(torch.nn.Module, "float", lambda module: module):
                self.teacher = FrozenTeacher(build_network(device, heads), distill)
        labels = np.arange(IMAGES) % 4
        self.probe = Probe(labels, 4, self.network.backbone.feature_dim, device) if probe else None
        targets = torch.zeros(heads, IMAGES, dtype=torch.int64, device=device)
        self.clusters = EpochTargets(Memory(length, IMAGES, DIM, device), targets) if clusters else None
        self.rows = np.arange(BATCH)

    def __call__(self):
        queued = None if self.queue is None else self.queue.queued()
        own_queue = None if self.teacher else queued
        embeddings, scores, queue_scores, features = self.network(self.crops, BATCH, own_queue)
        own = assigned = self.objective.of_assigning(embeddings)
        assigned_scores = self.objective.of_assigning(scores)
        if self.teacher is not None:
            assigned, assigned_scores, queue_scores = self.teacher(self.crops, BATCH, queued)
        targets = None if self.clusters is None else self.clusters.targets_of(self.rows, assigned)
        codes = self.objective.codes(assigned_scores, queue_scores, targets)
        if self.queue is not None:
            self.queue.push(assigned)
        loss = self.objective.loss(codes, scores, targets)
        self.monitor.update(codes, own, loss)
        for parameter in self.network.parameters():
            parameter.grad = torch.empty_like(parameter)
        self.optimizer.step()
        if self.probe is not None:
            self.probe.update(features, self.rows)


SWAV = [
    {"heads": heads, "teacher": teacher, "probe": probe, "queue": True}
    for heads in (1, 3)
    for teacher in (False, True)
    for probe in (False, True)
]
CLUSTERED = [{"heads": heads, "clusters": True, "probe": probe} for heads in (1, 3) for probe in (False, True)]
DISTILLED = [{"distill": views, "queue": True} for views in ((0, 1), (0,), (1, 3))]
MORE = [
    {"assigning": (0, 2)},
    {"assigning": (1, 0), "queue": True},
    {"assigning": (3, 0), "teacher": True},
    {"heads": 2, "hard": True},
]


@pytest.mark.parametrize(
    "parts",
    [*SWAV, *CLUSTERED, *DISTILLED, *MORE],
    ids=lambda parts: ", ".join(f"{name}={value}" for name, value in parts.items() if value is not False),
)
def test_the_host_waits_for_nothing_in_a_step(parts):
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = Step(**parts)
        for _ in range(3):  # fills the queue, and makes the indices that stay
            step()
        with Waits() as counting:
            step()
    assert counting.waits == {}


def test_the_counting_counts():
    with FakeTensorMode(allow_non_fake_inputs=True):
        values = torch.randn(4, 2, device="cuda")
        with Waits() as counting:
            values[[2, 0]]
            values.cpu()
    assert [kind.split(" ")[0] for kind in counting.waits] == ["blocking", "blocking"]
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError):
        torch.ones(2, device="cuda").sum().item()  # a fake tensor has no value to read
