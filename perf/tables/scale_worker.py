"""A rank that opens a large sample table by a checkout's own code, also that of an older one. Started by `scale.py`.

    python perf/tables/scale_worker.py CHECKOUT TABLE base|here

Does one phase for each line that it reads, and prints its seconds as JSON. The parent looks at this process's memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEED, GLOBAL_BATCH, WORLD_SIZE = 0, 4096, 8


def phases(path: Path, older: bool) -> dict[str, Callable[[], Any]]:
    """What a rank does with a table, in this order. older: whether the checkout has another loader."""
    from pipeline.dataset.labelled import labelled_data
    from pipeline.dataset.open import open_dataset
    from pipeline.dataset.reader import Reader
    from pipeline.loader import Ledger
    from pipeline.order import order, rank_rows
    from pipeline.requests import Feed

    kept: dict[str, Any] = {}

    def opened() -> None:
        kept["table"] = open_dataset(path, path.parent / "tables", 1, False)

    def first() -> None:
        kept["feed"] = Feed(kept["table"], Reader(kept["table"]))
        kept["order"] = order(SEED, 0, kept["feed"].usable)
        rows = rank_rows(kept["order"], 0, GLOBAL_BATCH, 0, WORLD_SIZE)
        kept["sizes"] = kept["table"].height[rows], kept["table"].width[rows]

    def start() -> None:
        kept["table"].digest()
        kept["labelled"] = labelled_data(kept["table"], None, 10_000)  # for the k-NN of a run

    def account() -> None:
        ledger = Ledger()
        ledger.enter(order(SEED, 0, kept["feed"].usable)[: len(kept["order"]) // GLOBAL_BATCH * GLOBAL_BATCH])
        kept["position"] = {"epoch": 0, "samples": 0, "count": ledger.count, "checksum": ledger.checksum}

    def next_epoch() -> None:
        if not older:
            kept["order"] = None  # as the loader does; an older one keeps it until the next order is made
        kept["order"] = order(SEED, 1, kept["feed"].usable)

    def saved() -> None:
        target = path.with_name(f"saved-{os.getpid()}.npz")
        kept["table"].save(target)
        target.unlink()
        target.with_suffix(".json").unlink()

    return {
        "open": opened, "first batch": first, "digest and k-NN": start, "account of an epoch": account,
        "next epoch": next_epoch, "save the table": saved, "checkpoint": lambda: len(json.dumps(kept["position"])),
    }  # fmt: skip


def main() -> None:
    checkout, path, which = sys.argv[1:]
    sys.path[0] = str(Path(checkout).resolve())
    steps = phases(Path(path), which == "base")
    print(json.dumps(list(steps)), flush=True)
    for line in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        result = steps[line.strip()]()
        print(json.dumps([time.perf_counter() - begun, time.process_time() - cpu, result]), flush=True)


if __name__ == "__main__":
    main()
