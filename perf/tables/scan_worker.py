"""One scan by a checkout's own code, also that of an older one. Started by `scan.py`, in the checkout's folder.

    python perf/tables/scan_worker.py CHECKOUT base|decode|headers FOLDER WORKERS

Prints seconds, CPU seconds (workers' too) and rows as a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    checkout, check, folder, workers = sys.argv[1:]
    sys.path[0] = str(Path(checkout).resolve())
    from pipeline.dataset.folder import scan_folder

    chosen: dict[str, Any] = {} if check == "base" else {"check": check}
    begun, cpu = time.perf_counter(), cpu_seconds()
    table = scan_folder(Path(folder), int(workers), False, **chosen)
    taken = {"seconds": time.perf_counter() - begun, "cpu_seconds": cpu_seconds() - cpu, "rows": len(table)}
    assert len(table.usable()) == len(table)
    print(json.dumps(taken))


def cpu_seconds() -> float:
    """Of this process and its ended workers."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":  # its workers import this file too
    main()
