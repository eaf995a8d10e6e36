"""Memory of the CPU half of a GPU's loader, measured in a separate process.

    python -m perf.loader.gpu_feed_memory TABLE.npz --batch 256 --threads 2 --epochs 10

The program runs the training loader with the ffcv backend as for a GPU, but drops the crops instead of copying them to
the GPU: in training they are in GPU memory before their host memory is used again. It prints one line of JSON, in MB
(1e6 bytes) of resident memory:

    imports_mb            after all imports: the interpreter with torch, numba and numpy
    built_mb              with table, reader and kernel, before the first batch
    epochs_mb             after each epoch
    peak_mb               the highest after building
    above_imports_mb      peak_mb - imports_mb
    cpu_above_imports_mb  the same for the loader without a GPU: float32 crops, 478 MB for 256 images; the training loop
                          holds one batch, one waits, and one or two are in the making
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

import pipeline.backends.ffcv
import pipeline.kernel.kernel  # imports numba, as the backend does when it is made
from common.cli import Parser, at_least
from perf.loader.contenders import crops_of
from pipeline.crops import Crops
from pipeline.dataset.table import SampleTable
from pipeline.loader import Loader


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.loader.gpu_feed_memory", __doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="a sample table (.npz) of JPEGs")
    parser.add_argument("--batch", type=at_least(1), default=256)
    parser.add_argument("--threads", type=at_least(1), default=2)
    parser.add_argument("--epochs", type=at_least(1), default=10)
    parser.add_argument("--config", help="the recipe that defines the crops (default: config/default.yaml)")
    parser.add_argument("settings", nargs="*", help="settings of the recipe, key=value")
    options = parser.parse_intermixed_args(arguments)
    crops = crops_of(options.config, options.settings)
    print(json.dumps(measure(options.table, crops, options.batch, options.threads, options.epochs)))
    return 0


def measure(path: Path, crops: Crops, batch: int, threads: int, epochs: int) -> dict[str, object]:
    """The figures of this program, see the top of this file. path: of a sample table (.npz)."""
    imports = resident("VmRSS")
    table = SampleTable.load(path)
    pipeline.backends.ffcv.finish_on_gpu = drop_crops  # type: ignore[assignment]
    loader = Loader(table, crops, backend="ffcv", seed=0, global_batch=batch, threads=threads, device_id=0)
    loader.device_id = None  # its thread makes no GPU the current one, as this runs without one
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


def drop_crops(groups: list[Tensor], *_: object) -> list[Tensor]:
    """Replaces `finish_on_gpu`: returns empty tensors, so that no host memory stays in use."""
    return [torch.empty(0, *group.shape[1:], dtype=group.dtype) for group in groups]


def run(loader: Loader, epochs: int) -> tuple[list[float], float]:
    """Run and close the loader; resident memory after each epoch and its peak, in MB."""
    forget_peak()
    after = []
    for _ in range(epochs):
        for batch in loader:
            del batch
        after.append(resident("VmRSS"))
    peak = max(resident("VmHWM"), *after)  # Linux updates VmHWM some pages late
    loader.close()
    return after, peak


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MB (1e6 bytes). Raises OSError."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise OSError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Reset VmHWM. Where this is forbidden, VmHWM stays the peak since the start of the process: an overestimate."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
