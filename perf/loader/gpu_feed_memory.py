"""What memory the CPU half of a GPU's loader takes, measured in a process of its own.

    python -m perf.loader.gpu_feed_memory TABLE.npz --batch 256 --threads 2 --epochs 10

It runs the training loader with the ffcv backend as on a GPU, up to the hand-over: where crops go across, here they
are let go of, since there they are in the GPU's memory by the time their host memory is used again. Prints one line of
JSON; in MB (1e6 bytes) of resident memory:

    imports_mb        after all imports: the interpreter with torch, numba and numpy
    built_mb          with table, reader and kernel, before the first batch
    epochs_mb         after each epoch
    peak_mb           the highest from building on
    above_imports_mb  peak_mb - imports_mb
    cpu_above_imports_mb  the same of the loader on a CPU alone: float32 crops, 478 MB for 256 images, of which the
                          training loop holds one batch, one waits, and one or two are made
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

import pipeline.backends.ffcv
import pipeline.kernel.kernel  # with numba, which the backend imports when it is made
from common.cli import Parser
from perf.loader.contenders import crops_of
from pipeline.crops import Crops
from pipeline.dataset.table import SampleTable
from pipeline.loader import Loader


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.loader.gpu_feed_memory", __doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="a sample table (.npz) of JPEGs")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--config", help="a recipe whose crops are made; default: the defaults'")
    parser.add_argument("settings", nargs="*", help="key=value of the recipe")
    options = parser.parse_intermixed_args(arguments)
    crops = crops_of(options.config, options.settings)
    print(json.dumps(measure(options.table, crops, options.batch, options.threads, options.epochs)))
    return 0


def measure(path: Path, crops: Crops, batch: int, threads: int, epochs: int) -> dict[str, object]:
    """See the head of this file."""
    imports = resident("VmRSS")
    table = SampleTable.load(path)
    pipeline.backends.ffcv.finish_on_gpu = across  # type: ignore[assignment]
    loader = Loader(table, crops, backend="ffcv", seed=0, global_batch=batch, threads=threads, device_id=0)
    built = resident("VmRSS")
    after, peak = run(loader, epochs)
    on_cpu = Loader(table, crops, backend="ffcv", seed=0, global_batch=batch, threads=threads)
    return {
        "imports_mb": imports,
        "built_mb": built,
        "peak_mb": peak,
        "epochs_mb": after,
        "above_imports_mb": round(peak - imports, 1),
        "cpu_above_imports_mb": round(run(on_cpu, 2)[1] - imports, 1),
        "batch": batch,
        "images_an_epoch": len(table) // batch * batch,
    }


def across(groups: list[Tensor], *_: object) -> list[Tensor]:
    """In place of `finish_on_gpu`: nothing of the host's memory is held."""
    return [torch.empty(0, *group.shape[1:], dtype=group.dtype) for group in groups]


def run(loader: Loader, epochs: int) -> tuple[list[float], float]:
    """Resident memory after each epoch, and the highest."""
    forget_peak()
    after = []
    for _ in range(epochs):
        for batch in loader:
            del batch
        after.append(resident("VmRSS"))
    peak = max(resident("VmHWM"), *after)  # Linux notes the highest some pages late
    loader.close()
    return after, peak


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (highest) of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise OSError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Let VmHWM begin anew; where that is forbidden it goes on from the start of the process, and tells too much."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
