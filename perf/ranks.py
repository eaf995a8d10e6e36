"""Run a function on several ranks of this machine, each in its own process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.machine import visible_gpus
from common.processes import environment, imported_by
from training.distributed import free_port


def run_ranks(
    function: Callable[..., None],
    ranks: int,
    *arguments: Any,
    on_gpu: bool = False,
    method: str = "forkserver",
    limit: float | None = None,
) -> None:
    """Run `function(rank, *arguments)` on all ranks at once; RANK, WORLD_SIZE and so on are in the environment.

    on_gpu: a GPU for each rank; otherwise the ranks see no GPU and have one thread each. method: "forkserver" starts
    ranks faster, from a server that has imported what the function's module imports; "spawn" starts each with a new
    interpreter, so that ranks share no memory pages. limit: seconds after which the ranks are killed. Raises
    RuntimeError with the exit codes if a rank fails, or if they take longer.
    """
    context: Any = multiprocessing.get_context(method)
    context.set_forkserver_preload(_imports(function))
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, on_gpu, function, arguments)) for rank in range(ranks)
    ]
    with environment({} if visible_gpus() else {"DS_ACCELERATOR": "cpu"}):  # the first start also starts the server
        for process in processes:
            process.start()
    end = None if limit is None else time.monotonic() + limit
    for process in processes:
        process.join(None if end is None else max(0.0, end - time.monotonic()))
    if any(process.is_alive() for process in processes):
        for process in processes:
            process.kill()
            process.join()
        raise RuntimeError(f"{arguments[0]}: took more than {limit:.0f} seconds")
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RuntimeError(f"{arguments[0]}: exit codes {codes}")


def _imports(function: Callable[..., None]) -> list[str]:
    """What the server imports before it forks; that starts no threads. DeepSpeed looks for a GPU as it is imported, and
    CUDA does not survive a fork, so where there is one the server imports torch alone."""
    names = ["torch", "torch._dynamo"]
    if visible_gpus():
        return names
    return names + imported_by(Path(str(sys.modules[function.__module__].__file__)).read_text())


def _rank(rank: int, ranks: int, port: int, on_gpu: bool, function: Callable[..., None], arguments: Any) -> None:
    warnings.simplefilter("ignore")
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    if not on_gpu:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        torch.set_num_threads(1)
    function(rank, *arguments)
