"""Run a function on several gloo ranks, one process each."""

import pickle
import queue
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from support.forks import context

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


def run_ranks(inputs: list[Any], function: Callable[[Any], Any]) -> list[Any]:
    """function(inputs[rank]) on len(inputs) gloo ranks, each a process; the results by rank."""
    results = context().Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context().Process(target=_rank, args=(rank, f"file://{folder}/store", inputs, function, results))
            for rank in range(len(inputs))
        ]
        for rank in ranks:
            rank.start()
        try:
            by_rank = dict(pickle.loads(results.get(timeout=120)) for _ in ranks)
        except queue.Empty:
            raise AssertionError(f"ranks hang or died: {[rank.exitcode for rank in ranks]}") from None
        finally:
            for rank in ranks:
                rank.join(timeout=10)
                rank.kill()
    return [by_rank[rank] for rank in range(len(inputs))]


def _rank(rank: int, store: str, inputs: list[Any], function: Callable[[Any], Any], results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=len(inputs))
    dist.barrier()  # a rank that ends while another one still connects would break its connections
    try:
        # As bytes: the queue would send a tensor as a handle to memory, which is gone once this process ends.
        results.put(pickle.dumps((rank, function(inputs[rank]))))
    finally:
        dist.destroy_process_group()


def count_collectives() -> list[str]:
    """The names of this process's collectives from now on: a list that grows with them."""
    calls: list[str] = []

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    return calls
