"""What k-NN of features takes beside its matrix products.

    python -m perf.nearest [--bank 1280000] [--dim 2048] [--queries 1024] [--rounds 5] [--json FILE]

`evaluate.py knn` searches the bank block by block and lets the nearest rows vote. Beside it, in turns: the products of
the same queries with the whole bank alone, and products with torch.topk, in the same blocks. The rows are random, of
unit length. The bank takes 4 x bank x dim bytes (10.5 GB by default); `memory` is the most that the search adds to it.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.cli import Parser, at_least
from model.nearest import BLOCK, predict
from perf.machine import machine
from perf.program import program

NEIGHBORS, CLASSES = 20, 1000


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.nearest", __doc__)
    parser.add_argument("--bank", type=at_least(1000), default=1_280_000, help="rows to search")
    parser.add_argument("--dim", type=at_least(1), default=2048, help="features of a row")
    parser.add_argument("--queries", type=at_least(1), default=1024)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    return program(
        lambda _stopped: measure(options.bank, options.dim, options.queries, options.rounds), show, options.json
    )


def measure(bank: int, dim: int, queries: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round's turns, and the search's peak memory in bytes beside the rows."""
    rows, labels, asked = unit_rows(bank, dim), torch.randint(CLASSES, (bank,)), unit_rows(queries, dim)

    def products(with_topk: bool) -> None:
        for block in rows.split(BLOCK):
            similarity = asked @ block.T
            if with_topk:
                similarity.topk(NEIGHBORS)

    before = peak()
    predict(rows, labels, asked, NEIGHBORS)
    memory = peak() - before
    turns: dict[str, Callable[[], Any]] = {
        "products": lambda: products(False),
        "products and topk": lambda: products(True),
        "k-NN": lambda: predict(rows, labels, asked, NEIGHBORS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            began = time.perf_counter()
            turn()
            seconds[name].append(time.perf_counter() - began)
    shape = {"bank": bank, "dim": dim, "queries": queries, "neighbors": NEIGHBORS}
    return {**shape, "seconds": seconds, "memory": memory, "machine": machine()}


def unit_rows(rows: int, dim: int) -> torch.Tensor:
    """Random rows of unit length, [rows, dim] float32, made block by block."""
    whole = torch.empty(rows, dim)
    for block in whole.split(BLOCK):
        torch.nn.functional.normalize(block.normal_(), out=block)
    return whole


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(report: dict[str, Any]) -> None:
    whole = report["seconds"]["k-NN"]
    print(f"{report['queries']:,} queries among {report['bank']:,} rows of {report['dim']:,} features")
    for name, seconds in report["seconds"].items():
        ratio = median(mine / other for mine, other in zip(whole, seconds, strict=True))
        print(f"{name:18} {median(seconds):7.2f} s   k-NN takes {ratio:.2f} of it")
    print(f"memory beside the rows: {report['memory'] / 1e6:,.0f} MB")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
