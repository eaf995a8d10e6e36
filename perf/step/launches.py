"""The graphs of a compiled step and the kernels that LARS launches, counted on a machine without a GPU.

    python -m perf.step.launches [--backbone resnet50] [--width 8]

Graphs: forward and backward of backbone and projection head at two resolutions, with batch norm synchronized over two
ranks; the other rank is not there (torch's "fake" process group). Two steps; a graph in the second is a recompile.

Launches: one for each operation that computes something. A _foreach operation whose lists broadcast launches a kernel
for each tensor; any other launches a kernel for as many tensors as fit into its arguments (multi_tensor_apply of
torch). Triton's kernels are counted, but not run. Counts do not depend on the width of a ResNet; a small one is faster.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from common.cli import Parser

TENSORS_OF_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36}  # by the number of lists
NOTHING = {"detach", "empty", "empty_like", "new_empty", "device"}


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.step.launches", __doc__)
    parser.add_argument("--backbone", default="resnet50", help="one of the paper's ResNets or a model of timm")
    parser.add_argument("--width", type=int, default=8, help="base width of a ResNet (default 8; 64 in the paper)")
    parser.add_argument("--checkpointing", action="store_true", help="with engine.activation_checkpointing")
    options = parser.parse_args(arguments)
    sizes = {"base_width": options.width} if options.backbone.startswith("resnet") else {}
    for name, value in count_graphs(options.backbone, sizes, options.checkpointing).items():
        print(f"{name}: {value}")
    for name, counts in count_lars(options.backbone, sizes).items():
        print(f"launches of LARS {name}: {counts.total()} ({dict(counts)})")
    return 0


def build(backbone: str, options: dict[str, Any]) -> Any:
    from training.build import build_network

    model = {"backbone": backbone, "options": options, "hidden_dim": 16, "embedding_dim": 8, "prototypes": 16}
    return build_network(model)


def count_graphs(backbone: str, options: dict[str, Any], checkpointing: bool = False) -> dict[str, Any]:
    """Graphs of the first step, how many of them take any shape ("dynamic"), graphs of the second step ("recompiles"),
    graph breaks, and operations in all graphs."""
    import torch.distributed as dist
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import counters
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from model.backbone import checkpoint_activations
    from model.batchnorm import replace_batch_norm
    from training.compiled import compile_network

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        network = build(backbone, options)
        replace_batch_norm(network, 0, 2, 0, equal_batches=True)
        if checkpointing:
            checkpoint_activations(network.backbone)
        counters.clear()
        counter = CompileCounterWithBackend("eager")
        compile_network(network, counter)
        graphs = []
        for _ in range(2):
            crops = [torch.randn(views, 3, size, size) for views, size in ((2, 224), (6, 96))]
            scores = network([crop.contiguous(memory_format=torch.channels_last) for crop in crops], 1)[1]
            scores.sum().backward()
            graphs.append(counter.frame_count)
    finally:
        dist.destroy_process_group()
    dynamic = sum(any(map(takes_any_shape, graph.graph.nodes)) for graph in counter.graphs)
    found = {"graphs": graphs[0], "dynamic": dynamic, "recompiles": graphs[1] - graphs[0]}
    return found | {"breaks": sum(counters["graph_break"].values()), "operations": counter.op_count}


def takes_any_shape(node: torch.fx.Node) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


class Launches(TorchDispatchMode):
    """Counts the kernels that a GPU would launch for the operations within, by the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
        if name.startswith("_foreach"):
            broadcasts = any(a.shape != b.shape for other in lists[1:] for a, b in zip(lists[0], other, strict=True))
            self.counts[name] += math.ceil(len(lists[0]) / (1 if broadcasts else TENSORS_OF_A_LAUNCH[len(lists)]))
        elif name not in NOTHING and not name.startswith("_record_function") and not function.is_view:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class Kernel:
    """In place of a Triton kernel: counts its launches and does nothing."""

    def __init__(self, name: str, launches: Launches) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, _grid: Any) -> Any:
        return lambda *_, **__: self.launches.counts.update([self.name])


def count_lars(backbone: str, options: dict[str, Any]) -> dict[str, Counter[str]]:
    """Launches of a step of LARS at stage 0, by operation: without its Triton kernels (on torch's fake CUDA tensors)
    and with them."""
    from model.optimizer import lars_fused

    launches = Launches()
    with FakeTensorMode(), torch.device("cuda"):
        step = step_of_lars(backbone, options, None)
        with launches:
            step()
    found = {"without kernels": launches.counts}
    launches = Launches()
    kernels = {kernel: Kernel(kernel, launches) for kernel in ("_squares", "_sums", "_update")}
    with mock.patch.multiple(lars_fused, **kernels):  # type: ignore[call-overload]
        step = step_of_lars(backbone, options, lars_fused.FusedLARS())
        launches.counts.clear()
        with launches:
            step()
    return found | {"with kernels": launches.counts}


def step_of_lars(backbone: str, options: dict[str, Any], kernels: Any) -> Callable[[], Any]:
    """The second step of LARS on a network, with these kernels or without."""
    from model.optimizer.groups import parameter_groups
    from model.optimizer.lars import LARS

    network = build(backbone, options)
    optimizer = LARS(parameter_groups(network), lr=0.1)
    optimizer._fused = lambda *_: kernels  # type: ignore[method-assign]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # makes the state
    return optimizer.step


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
