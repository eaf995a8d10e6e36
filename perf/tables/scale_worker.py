"""A rank that opens a large sample table by a checkout's own code, also that of an older one. Started by `scale.py`.

    python perf/tables/scale_worker.py CHECKOUT TABLE

Does one phase for each line that it reads, and prints its seconds as JSON. The parent looks at this process's memory.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEED, GLOBAL_BATCH, WORLD_SIZE, CLASSES = 0, 4096, 8, 1000


def phases(path: Path) -> dict[str, Callable[[], Any]]:
    """What a rank does with a table, in this order."""
    import pipeline.dataset.folder
    from pipeline.dataset.labelled import labelled_data
    from pipeline.dataset.open import open_dataset
    from pipeline.dataset.reader import Reader
    from pipeline.loader import Ledger
    from pipeline.order import order, rank_rows
    from pipeline.requests import Feed

    kept: dict[str, Any] = {}
    older = not hasattr(pipeline.dataset.folder, "_Task")  # before tables were memory-mapped

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

    def scanned() -> None:
        pretend_files(len(kept["table"]), older)
        from pipeline.dataset.folder import images_of, list_folder, scan_folder

        spool: dict[str, Any] = {} if older else {"spool": path.parent}
        listing = images_of(path.parent, list_folder(path.parent, **spool))
        table = scan_folder(path.parent, 1, False, listing, **spool)
        kept.clear()
        kept["table"] = table
        saved()

    return {
        "open": opened, "first batch": first, "digest and k-NN": start, "account of an epoch": account,
        "next epoch": next_epoch, "save the table": saved, "checkpoint": lambda: len(json.dumps(kept["position"])),
        "scan and save": scanned,
    }  # fmt: skip


def pretend_files(rows: int, older: bool) -> None:
    """Let this process find `rows` files in a folder where there are none, and probe them without reading: what a scan
    keeps in memory is its own code's."""
    import numpy as np

    import pipeline.dataset.folder as folder
    from pipeline.dataset.images import Probe
    from pipeline.dataset.table import State

    file = os.stat(__file__)

    class Entry:
        def __init__(self, name: str, is_folder: bool) -> None:
            self.name, self.is_folder = name, is_folder

        def is_dir(self) -> bool:
            return self.is_folder

        def stat(self) -> os.stat_result:
            return file

    def list_of(place: Path) -> list[Entry]:
        if place.name[:1] != "n":
            return [Entry(f"n{number:08d}", True) for number in range(CLASSES)]
        return [Entry(f"{place.name}_{number:08d}.JPEG", False) for number in range(rows // CLASSES)]

    def probes(task: Any) -> Any:
        count = len(task[2])
        if older:
            return task[0], [(100_000, Probe(500, 375, State.OK))] * count
        width = np.full(count, 500, np.int32)
        return task[0], folder.Probes(np.full(count, 100_000), width, width, np.zeros(count, np.uint8), {}), {}

    os.scandir = list_of  # type: ignore[assignment]
    numbers = itertools.count()
    os.stat = lambda place, **_: os.stat_result((file.st_mode, next(numbers), *file[2:]))
    folder._probe_chunk = probes


def main() -> None:
    checkout, path = sys.argv[1:3]
    sys.path[0] = str(Path(checkout).resolve())
    steps = phases(Path(path))
    print(json.dumps(list(steps)), flush=True)
    for line in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        result = steps[line.strip()]()
        print(json.dumps([time.perf_counter() - begun, time.process_time() - cpu, result]), flush=True)


if __name__ == "__main__":
    main()
