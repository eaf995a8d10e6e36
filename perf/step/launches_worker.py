"""Counts of one checkout, also of an older one, whose modules may have other names. Started by perf/step/launches.py.

    python perf/step/launches_worker.py CHECKOUT BACKBONE WIDTH [checkpointing]

Prints a line of JSON: what `graphs_of`, `step_of`, `lars_of` and `synchronizations_of` return.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TENSORS_OF_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36}  # of a _foreach operation, by the number of lists
NOTHING = {"detach", "empty", "empty_like", "new_empty", "device", "_unsafe_view", "lift_fresh", "alias"}
GROUPS = ((2, 224), (6, 96))  # crops of an image: views, pixels
BATCH, QUEUE = 8, 16
HEAD = 2048, 128, 3000  # the paper's: width of the projection head, length of embeddings, prototypes
SMALL = 16, 8, 16
OF_KERNELS = ("_squares", "_sums", "_update")  # Triton's, in model/optimizer/lars_fused.py
STEPS = 4  # whose synchronizations are counted, after as many


def main() -> None:
    checkout, backbone, width, *more = sys.argv[1:]
    sys.path[0] = str(Path(checkout).resolve())
    warnings.filterwarnings("ignore")
    options = {"base_width": int(width)} if backbone.startswith("resnet") else {}
    found = {
        "graphs": graphs_of(backbone, options, bool(more)),
        "step": step_of(backbone, options),
        "lars": {name: dict(counts) for name, counts in lars_of(backbone, options).items()},
        "synchronizations": synchronizations_of(),
    }
    print("\n" + json.dumps(found), flush=True)


def first_of(*modules: str) -> Any:
    """The first of these modules that the checkout has."""
    for name in modules:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ModuleNotFoundError(f"none of {', '.join(modules)}")


def build(backbone: str, options: dict[str, Any], ranks: int = 1, head: tuple[int, int, int] = SMALL) -> Any:
    """A network, with batch norm synchronized over so many ranks."""
    from model import batchnorm
    from model.backbone import build_backbone
    from model.swav import SwAV

    network = SwAV(build_backbone(backbone, **options), *head)
    replace = batchnorm.replace_batch_norm
    if "equal_batches" in replace.__code__.co_varnames:
        replace = partial(replace, equal_batches=True)
    replace(network, 0, ranks, 0)
    return network


@contextlib.contextmanager
def two_ranks() -> Iterator[None]:
    """A process group of two ranks, of which the other is not there: torch's "fake" one."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------- graphs
def graphs_of(backbone: str, options: dict[str, Any], checkpointing: bool = False) -> dict[str, Any]:
    """Graphs of the first step, how many of them take any shape ("dynamic"), graphs of the second step ("recompiles"),
    graph breaks, and operations in all graphs; as the checkout's engine.compile=true makes them."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import counters

    from model.backbone import checkpoint_activations

    with two_ranks():
        network = build(backbone, options, ranks=2)
        if checkpointing:
            checkpoint_activations(network.backbone)
        counters.clear()
        counter = CompileCounterWithBackend("eager")
        try:
            from training.compiled import compile_network
        except ModuleNotFoundError:  # then the engine did this
            network.backbone.compile(backend=counter)
            network.projection_head.compile(backend=counter)
        else:
            compile_network(network, counter)
        graphs = []
        for _ in range(2):
            crops = [torch.randn(views, 3, size, size) for views, size in GROUPS]
            scores = network([crop.contiguous(memory_format=torch.channels_last) for crop in crops], 1)[1]
            scores.sum().backward()
            graphs.append(counter.frame_count)
    dynamic = sum(any(map(takes_any_shape, graph.graph.nodes)) for graph in counter.graphs)
    found = {"graphs": graphs[0], "dynamic": dynamic, "recompiles": graphs[1] - graphs[0]}
    return found | {"breaks": sum(counters["graph_break"].values()), "operations": counter.op_count}


def takes_any_shape(node: torch.fx.Node) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


# ---------------------------------------------------------------------------------------------- launches
def _two_for_each_channel(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    width = x.shape[1] if x.ndim > 1 else len(x)
    return x.new_empty(width, dtype=torch.float32), x.new_empty(width, dtype=torch.float32)


def _like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


SHAPES: dict[str, Callable[..., Any]] = {  # operations that torch has no fake implementation of
    "batch_norm_stats": _two_for_each_channel,
    "batch_norm_gather_stats_with_counts": lambda _, means, *more: _two_for_each_channel(means),
    "batch_norm_elemt": _like,
    "batch_norm_backward_reduce": lambda dy, *_: (*_two_for_each_channel(dy), *_two_for_each_channel(dy)),
    "batch_norm_backward_elemt": _like,
}


class Launches(TorchDispatchMode):
    """Counts what the operations within would do on a GPU: kernels (`counts`, by the operations' names), copies between
    host and device, and those for which the host waits (`waits`).

    fake: tensors of the host are not the device's; without it all are taken for the device's.
    """

    def __init__(self, fake: bool = True) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.copies = self.waits = 0
        self.fake = fake

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        result = SHAPES[name](*args) if name in SHAPES else function(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        on_device = {tensor.is_cuda for tensor in [*given, *made] if tensor.ndim or tensor.is_cuda}
        if self.fake and on_device == {True, False}:
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            self.copies += 1
            self.waits += not asynchronous
        copied = name in ("_to_copy", "copy_") and len(on_device) == 2
        if copied or (self.fake and True not in on_device):  # no kernel, or one of the host
            return result
        lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
        if name.startswith("_foreach"):
            broadcasts = any(a.shape != b.shape for other in lists[1:] for a, b in zip(lists[0], other, strict=True))
            self.counts[name] += math.ceil(len(lists[0]) / (1 if broadcasts else TENSORS_OF_A_LAUNCH[len(lists)]))
        elif name not in NOTHING and not name.startswith("_record_function") and not function.is_view:
            self.counts[name] += 1
        return result


# ---------------------------------------------------------------------------------------------- the step
def step_of(backbone: str, options: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Kernels ("launches"), copies between host and device and waits for them ("copies", "waits") of each phase of a
    step in bf16 but LARS's, which `lars_of` counts. Batch norm is synchronized over two ranks.

    The tensors are torch's fake ones on "cuda". Without a GPU, torch 2.11 cannot run backward with them; for backward
    they are on "cpu" and say that they are on a GPU. Collectives are not counted.
    """
    ignored = mock.patch.multiple(torch.distributed, all_reduce=no_message, all_gather_into_tensor=no_message)
    with two_ranks(), ignored:
        phases = Step("cuda", backbone, options)()
        with mock.patch.object(FakeTensor, "is_cuda", property(lambda tensor: True), create=True):
            phases["backward"] = Step("cpu", backbone, options)(backward=True)["backward"]
    return {
        name: {"launches": one.counts.total(), "copies": one.copies, "waits": one.waits} for name, one in phases.items()
    }


def no_message(*_: Any, **__: Any) -> None:
    """In place of a collective, whose fake tensors hold nothing to send."""


class Step:
    """Parts of a run and its step on fake tensors of a device."""

    def __init__(self, kind: str, backbone: str, options: dict[str, Any]) -> None:
        from model.monitor import CodeMonitor
        from model.queue import EmbeddingQueue

        self.device, self.mode = torch.device(kind, 0) if kind == "cuda" else torch.device(kind), FakeTensorMode()
        self.network, (_, dim, prototypes) = build(backbone, options, 2, HEAD), HEAD
        with self.mode:
            make_fake(self.network, self.device)
            self.crops = [
                torch.empty(views * BATCH, 3, size, size, device=self.device, dtype=torch.bfloat16).contiguous(
                    memory_format=torch.channels_last
                )
                for views, size in GROUPS
            ]
            self.monitor = CodeMonitor(prototypes, dim, self.device)
            self.queue = EmbeddingQueue(2, QUEUE, dim, global_batch=BATCH, device=self.device)
        self.assigning = [0, 1]

    def __call__(self, backward: bool = False) -> dict[str, Launches]:
        """Counts of each phase of the third step, when the queue is full and what stays has been made."""
        with self.mode, torch.autograd.set_multithreading_enabled(False):
            for _ in range(3):
                phases = self.once(backward)
        return phases

    def once(self, backward: bool) -> dict[str, Launches]:
        phases = {name: Launches() for name in ("forward", "codes", "loss", "monitor", "backward")}
        with phases["forward"], autocast(self.device.type):
            embeddings, scores, queue_scores, _ = self.network(self.crops, BATCH, self.queue.queued())
        with phases["codes"]:
            own, codes, loss_of = self.codes(embeddings, scores, queue_scores)
        with phases["loss"]:
            loss = loss_of()
        with phases["monitor"]:
            self.monitor.update(codes, own(), loss)
        if backward:
            with phases["backward"]:
                loss.backward()
            self.network.zero_grad()
        return phases

    @torch.no_grad()
    def codes(self, embeddings: Tensor, scores: Tensor, queue_scores: Tensor | None) -> Any:
        """The assigning crops' embeddings, the codes and the loss, as the checkout's train.py computes them; embeddings
        and loss as functions, to be called where train.py computes them."""
        try:
            from model.objective import Objective
        except ModuleNotFoundError:
            from model.loss import swapped_prediction
            from model.sinkhorn import sinkhorn

            assigned, inputs = embeddings[self.assigning], scores[self.assigning]
            inputs = inputs if queue_scores is None else torch.cat([queue_scores, inputs], dim=1)
            codes = sinkhorn(inputs, 0.05, 3, check=False)[:, -BATCH:]
            self.queue.push(assigned)
            return lambda: embeddings[self.assigning], codes, lambda: swapped_prediction(codes, scores, [0, 1], 0.1)
        objective = Objective((0, 1), 0.05, 3, 0.1, HEAD[-1])
        own = objective.of_assigning(embeddings)
        codes = objective.codes(objective.of_assigning(scores), queue_scores, None)
        self.queue.push(own)
        return lambda: own, codes, lambda: objective.loss(codes, scores, None)


@contextlib.contextmanager
def autocast(kind: str) -> Iterator[None]:
    """torch.autocast to bfloat16, also for "cuda" where there is no GPU."""
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, True)
    torch.set_autocast_dtype(kind, torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])
        torch.clear_autocast_cache()


def make_fake(network: nn.Module, device: torch.device) -> None:
    """Replace all parameters and buffers by fake ones on `device`; within a FakeTensorMode."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


# ---------------------------------------------------------------------------------------------- LARS
class Kernel:
    """In place of a Triton kernel: counts its launches and does nothing."""

    def __init__(self, name: str, launches: Launches) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, _grid: Any) -> Any:
        return lambda *_, **__: self.launches.counts.update([self.name])


def lars_of(backbone: str, options: dict[str, Any]) -> dict[str, Counter[str]]:
    """Launches of a step of LARS at stage 0, by operation: "without kernels" of Triton (on torch's fake CUDA tensors)
    and, in a checkout that has them, "with kernels"."""
    launches = Launches()
    network = build(backbone, options)
    with FakeTensorMode(), torch.device("cuda"):
        make_fake(network, torch.device("cuda", 0))
        step = step_of_lars(network, None)
        with launches:
            step()
    found = {"without kernels": launches.counts}
    try:
        from model.optimizer import lars_fused
    except ImportError:
        return found
    launches = Launches(fake=False)
    kernels = {name: Kernel(name, launches) for name in OF_KERNELS}
    with mock.patch.multiple(lars_fused, **kernels):  # type: ignore[call-overload]
        step = step_of_lars(build(backbone, options), lars_fused.FusedLARS())
        launches.counts.clear()
        with launches:
            step()
    return found | {"with kernels": launches.counts}


def step_of_lars(network: nn.Module, kernels: Any) -> Callable[[], Any]:
    """The second step of LARS on a network, with these kernels or without."""
    lars = first_of("model.optimizer.lars", "model.lars")
    groups = first_of("model.optimizer.groups", "model.lars")
    optimizer = lars.LARS(groups.parameter_groups(network), lr=0.1)
    optimizer._fused = lambda *_: kernels
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # makes the state
    return optimizer.step


# ---------------------------------------------------------------------------------------------- DeepSpeed
def synchronizations_of() -> dict[str, float]:
    """Synchronizations of the whole device by DeepSpeed in a step of perf/zero_ranks.py, by ZeRO stage. They depend on
    DeepSpeed's settings, not on the network."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    from deepspeed.accelerator import get_accelerator

    from perf.zero_ranks import Case, Training

    cluster = first_of("training.distributed", "launch.cluster")
    calls = Counter[str]()
    found = {}
    with (
        cluster.connected(cluster.Cluster()),
        mock.patch.object(type(get_accelerator()), "synchronize", lambda *_: calls.update(["synchronize"])),
    ):
        for stage in (0, 1):
            training = Training(Case(stage, 1), cluster.Cluster())
            for step in range(2 * STEPS):
                if step == STEPS:
                    calls.clear()
                training.step(step)
            found[f"stage {stage}"] = calls.total() / STEPS
    return found


if __name__ == "__main__":
    main()
