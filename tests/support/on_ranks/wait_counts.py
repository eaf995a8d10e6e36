"""Lists the host's reads of tensor values in each step of train.py: on a GPU each read waits for the device."""

import json
import os
import sys
from pathlib import Path

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__repr__"}
READING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "bincount", "equal", "is_nonzero")


class Calls(TorchFunctionMode):
    """Appends to `reads` each Python call that reads values."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS:
            self.reads.append(f"{name} {where()}")
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Appends to `reads` each operation that reads values; one that `Calls` has appended comes again."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READING:
            self.reads.append(f"{name} {where()}")
        return function(*args, **(kwargs or {}))


def where():
    """The innermost line of swave or DeepSpeed that reads, e.g. "training/counters.py:70"."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "torch" not in path and "wait_counts" not in path:
            return f"{Path(path).parent.name}/{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def count(rank, ranks, port, arguments, out):
    """As a rank: train, and write the reads of each step (a list per step) to `out`."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()} | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    import train
    from training.step_agreement import Agreement

    reads, steps = [], []
    exchange = Agreement.exchange

    def counting(self, *values, **named):
        result = exchange(self, *values, **named)
        steps.append(list(reads))
        reads.clear()
        return result

    Agreement.exchange = counting
    with Calls(reads), Operations(reads):
        code = train.main(arguments)
    if rank == 0:
        out.write_text(json.dumps(steps))
    sys.exit(code)
