"""How long writing a checkpoint stops training, and how long reading one takes.

    python -m perf.save_time [--model resnet50] [--ranks 1 2] [--folder runs] [--json perf/results/save_time.json]

All ranks save the training state of a network with LARS after a step (masters, momentum, batch-norm statistics, a queue
of 3,840) five times into `--folder`, whose disk this measures, and load it once. The ranks wait during a save; `share`
is the share of the time that this takes with a save every ten minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.cli import Parser, at_least
from perf.machine import machine
from perf.memory import MODELS
from perf.ranks import run_ranks
from training.distributed import Cluster, connected

SAVES, QUEUE, MINUTES = 5, 3840, 10


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.save_time", __doc__)
    parser.add_argument("--model", choices=tuple(MODELS), default="resnet50")
    parser.add_argument("--ranks", type=at_least(1), nargs="+", default=[1, 2], metavar="N")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs"), help="a folder on the disk to measure (default: runs)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = [measure(options.model, ranks, options.folder) for ranks in options.ranks]
    for row in rows:
        print(
            f"{row['model']} on {row['ranks']} rank(s): {row['megabytes']:,.0f} MB, saved in {row['seconds']:.2f} s "
            f"(longest {row['longest']:.2f}), loaded in {row['load_seconds']:.2f} s; a save every {MINUTES} minutes "
            f"takes {row['share']:.2%} of the time"
        )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")
    return 0


def measure(model: str, ranks: int, folder: Path) -> dict[str, Any]:
    """A row of the report: the state of `model` saved and loaded by `ranks` processes."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run_ranks(run_rank, ranks, ranks, model, Path(scratch))
        figures = json.loads((Path(scratch) / "figures.json").read_text())
    seconds = figures["seconds"]
    share = median(seconds) / (60 * MINUTES + median(seconds))
    row = {"model": model, "ranks": ranks, "megabytes": figures["bytes"] / 1e6, "seconds": median(seconds)}
    return row | {"longest": max(seconds), "load_seconds": figures["load_seconds"], "share": share}


def run_rank(rank: int, ranks: int, model: str, folder: Path) -> None:
    """Run one rank: save and load its state after one step; rank 0 writes `folder`/figures.json."""
    from model.optimizer.groups import parameter_groups
    from model.optimizer.lars import LARS
    from model.optimizer.segments import Layout
    from model.queue import EmbeddingQueue
    from training.build import build_network
    from training.checkpoint.masters import load_network, network_shapes, network_tensors
    from training.checkpoint.save_load import load_checkpoint, save_checkpoint

    with connected(Cluster(rank, ranks, rank, ranks)):
        torch.manual_seed(0)
        network = build_network(MODELS[model][0])
        optimizer = LARS(parameter_groups(network), lr=0.1)
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
        optimizer.layout = Layout.of_whole(optimizer.param_groups, names)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        queue = EmbeddingQueue(2, QUEUE, MODELS[model][0]["embedding_dim"], global_batch=256, world_size=ranks)
        seconds = []
        for step in range(SAVES):
            torch.distributed.barrier()
            begun = time.perf_counter()
            state = {"step": step, **network_shapes(network, optimizer)}
            tensors = network_tensors(network, optimizer, rank, ranks) | queue.state_tensors()
            path = save_checkpoint(folder / "checkpoints", state, tensors, keep=2)
            seconds.append(time.perf_counter() - begun)
        size = sum(file.stat().st_size for file in path.iterdir())
        begun = time.perf_counter()
        state, saved = load_checkpoint(path)
        load_network(state, saved, network, optimizer, rank, ranks)
        queue.load_state_tensors(saved.ranks, rank, ranks)
        figures = {"seconds": seconds, "load_seconds": time.perf_counter() - begun, "bytes": size}
        if rank == 0:
            (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
