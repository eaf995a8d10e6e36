"""Lists what a host would wait for in each step of train.py: reads of tensor values, synchronizations, and tensors made
of the host's values. Also where a stream waits for another (ON_DEVICE), which is no wait of the host.

On a CPU DeepSpeed skips its synchronizations and streams, because there is nothing to wait for. So that it takes its
GPU's way, the CPU accelerator says here that it is not synchronized, and gets streams and events that only count.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__repr__"}
READING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "bincount", "equal", "is_nonzero")
ON_DEVICE = "wait_stream"  # a stream waits for another, the host does not
MAKING = {"tensor", "as_tensor", "from_numpy", "asarray"}


class Calls(TorchFunctionMode):
    """Appends to `seen` each Python call that reads values, or makes a tensor or an index of the host's values."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS or name in MAKING or (name in ("__getitem__", "__setitem__") and _on_host(args[1])):
            self.seen.append(f"{name} {where()}")
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Appends to `seen` each operation that reads values; one that `Calls` has appended comes again."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READING:
            self.seen.append(f"{name} {where()}")
        return function(*args, **(kwargs or {}))


def _on_host(index):
    """Whether an index holds values of the host: a list or an array."""
    return any(type(part).__name__ in ("list", "ndarray") for part in (index if isinstance(index, tuple) else (index,)))


def count_synchronizations(seen):
    """From now on DeepSpeed treats the CPU as a GPU, and each time that the host would wait for it goes to `seen`."""
    import torch
    from deepspeed.accelerator import get_accelerator

    def waiting(*_, **__):
        seen.append(f"synchronize {where()}")

    class Counting:
        """A stream or an event, whose work is never done when asked: a host that asks waits."""

        def __init__(self, *_, **__):
            pass

        def nothing(self, *_, **__):
            return None

        wait_event = record = wait = nothing
        synchronize = waiting

        def wait_stream(self, _):
            seen.append(f"{ON_DEVICE} {where()}")

        def query(self):
            return False

        def record_event(self, *_):
            return Counting()

    accelerator = type(get_accelerator())
    accelerator.is_synchronized_device = lambda self: False
    accelerator.synchronize = waiting
    accelerator.Stream = accelerator.Event = property(lambda self: Counting)
    accelerator.current_stream = accelerator.default_stream = lambda self, *_: Counting()
    accelerator.stream = lambda self, _: nullcontext()
    torch.Tensor.record_stream = lambda self, _: None


def where():
    """The innermost line of swave or DeepSpeed that does it, e.g. "training/counters.py:70"."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "torch" not in path and "wait_counts" not in path and "nvtx" not in path:
            return f"{Path(path).parent.name}/{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def count(rank, ranks, port, arguments, out):
    """As a rank: train, and write what each step waited for (a list per step) to `out`."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()} | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    import train
    from training.step_agreement import Agreement

    seen, steps = [], []
    count_synchronizations(seen)
    exchange = Agreement.exchange

    def counting(self, *values, **named):
        result = exchange(self, *values, **named)
        steps.append(list(seen))
        seen.clear()
        return result

    Agreement.exchange = counting
    with Calls(seen), Operations(seen):
        code = train.main(arguments)
    if rank == 0:
        out.write_text(json.dumps(steps))
    sys.exit(code)
