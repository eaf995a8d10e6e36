"""The codes on a GPU in several implementations: which one is the fastest?

    python -m perf.gpu_check --only codes

    eager     model.sinkhorn without its kernels
    compiled  the same through torch.compile
    graph     the same as one CUDA graph
    triton    the kernels of model.sinkhorn_fused, which model.sinkhorn can use on a GPU

All use the same scores in interleaved turns, on one GPU and so without communication.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

EPSILON, ITERATIONS, CROPS, WIDTH, PROTOTYPES = 0.05, 3, 2, 128, 3000
AGREE = 1e-5  # largest difference of a code from that of the eager version
ROUNDS, CALLS, WARM_UP = 20, 20, 3


def compare(batch: int, device: torch.device, prototypes: int = PROTOTYPES) -> list[dict[str, Any]]:
    """A row for each implementation: {"way", "ms", "min", "max", "difference", "holds"}, or "error" if it did not run.

    batch: images a GPU. Times are for a call, until the device finishes it.
    """
    torch.manual_seed(0)
    embeddings = functional.normalize(torch.randn(CROPS, batch, WIDTH, device=device), dim=-1)
    scores = embeddings @ functional.normalize(torch.randn(prototypes, WIDTH, device=device), dim=-1).T
    with without_kernels():
        expected = eager(scores)
    rows: list[dict[str, Any]] = []
    works: list[Callable[[], Tensor]] = []
    for way, make in ways(device).items():
        row: dict[str, Any] = {"way": way}
        rows.append(row)
        try:
            work = make(scores)
            row["difference"] = float((work() - expected).abs().max())
        except Exception as error:  # one that fails on this GPU or torch must not hide the others
            row["error"] = " ".join(str(error).split())[:200]
            continue
        works.append(work)
    times = iter(timed(works, device))
    for row in rows:
        if "error" not in row:
            milliseconds = next(times)
            row |= {
                "ms": median(milliseconds),
                "min": min(milliseconds),
                "max": max(milliseconds),
                "holds": row["difference"] <= AGREE,
            }
        else:
            row["holds"] = False
    return rows


def timed(works: list[Callable[[], Tensor]], device: torch.device) -> list[list[float]]:
    """Milliseconds of a call of each work, a list over rounds for each."""
    from perf.interleaved import take_turns
    from perf.step.roofline import finish

    def turn(work: Callable[[], Tensor], _counts: bool) -> float:
        finish(device)
        begun = time.perf_counter()
        for _ in range(CALLS):
            work()
        finish(device)
        return (time.perf_counter() - begun) * 1e3 / CALLS

    return take_turns([partial(turn, work) for work in works], ROUNDS, WARM_UP)


def ways(device: torch.device) -> dict[str, Callable[[Tensor], Callable[[], Tensor]]]:
    """For each implementation a function that takes the scores and returns a call of it."""
    functions: dict[str, Callable[[Tensor], Callable[[], Tensor]]] = {"eager": eagerly, "compiled": compiled}
    return functions | {"graph": graph, "triton": triton} if device.type == "cuda" else functions


def eager(scores: Tensor) -> Tensor:
    from model.sinkhorn import sinkhorn

    return sinkhorn(scores, EPSILON, ITERATIONS, check=False)


def eagerly(scores: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with without_kernels():
            return eager(scores)

    return call


def compiled(scores: Tensor) -> Callable[[], Tensor]:
    work = torch.compile(eager)

    def call() -> Tensor:
        with without_kernels():
            return work(scores)

    return call


def graph(scores: Tensor) -> Callable[[], Tensor]:
    side = torch.cuda.Stream(scores.device)
    with without_kernels():
        with torch.cuda.stream(side):
            for _ in range(3):
                eager(scores)
        torch.cuda.synchronize(scores.device)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            codes = eager(scores)

    def call() -> Tensor:
        recorded.replay()
        return codes

    return call


def triton(scores: Tensor) -> Callable[[], Tensor]:
    from model.sinkhorn_fused import fused_codes

    return partial(fused_codes, scores, EPSILON, ITERATIONS, lambda sums: sums)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Within this context model.sinkhorn does not use its kernels."""
    from model import sinkhorn

    usual, sinkhorn.with_kernels = sinkhorn.with_kernels, False
    try:
        yield
    finally:
        sinkhorn.with_kernels = usual
