"""Times codes and their collectives over several links: ranks of this machine, and hosts in network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from config.recipe import ROOT
from perf.ranks import run_ranks
from perf.sinkhorn.ranks import Plan, run_rank
from perf.sinkhorn.variants import Point, sent

PORT = 29577  # on the first host, where no other program runs
# Bytes that a rank may gather. For more, glibc maps new memory in each call, and page faults take most of the time.
GATHERED = 32 << 20
LOCAL = "local"
KEY = ("ranks", "crowded", "bytes", "point")  # identifies a row of a link
# The processes of this machine start several times, since the position of their memory in the caches is random.
STARTS, START_SECONDS = 3, 15  # largest number of starts, least seconds of each


def points(prototypes: Sequence[int], batches: Sequence[int], iterations: Sequence[int]) -> list[Point]:
    """All variants with the first value of each list, then with each other value of one list."""
    first = (prototypes[0], batches[0], iterations[0])
    shapes = [first]
    shapes += [(count, *first[1:]) for count in prototypes[1:]]
    shapes += [(first[0], batch, first[2]) for batch in batches[1:]]
    shapes += [(*first[:2], count) for count in iterations[1:]]
    return [Point(variant, *shape) for shape in shapes for variant in ("ours", "published", "gather")]


def fits(point: Point, ranks: int) -> bool:
    """Whether each of `ranks` on one machine may gather the bytes that this point needs."""
    return point.variant != "gather" or sent(point)[0].bytes * ranks <= GATHERED


def on_this_machine(plan: Plan) -> list[dict[str, Any]]:
    """Rows of perf.sinkhorn.ranks, measured on processes of this machine. Raises RuntimeError if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(run_rank, max(plan.groups), plan, Path(folder), on_gpu=plan.on_gpu)
        return _read(folder)


def on_hosts(plan: Plan, delay: float) -> list[dict[str, Any]]:
    """The same on hosts with one rank each and `delay` seconds one way between them. Raises RuntimeError."""
    from perf.virtual_cluster.hosts import Hosts

    count = max(plan.groups)
    with tempfile.TemporaryDirectory() as folder, Hosts(count, Path(folder) / "hosts", delay=delay) as hosts:
        plan.save(Path(folder))
        common = {"WORLD_SIZE": count, "LOCAL_RANK": 0, "MASTER_ADDR": hosts.addresses[0], "MASTER_PORT": PORT}
        common |= {
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": 1,
            "CUDA_VISIBLE_DEVICES": "",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        command = [sys.executable, "-W", "ignore", "-m", "perf.sinkhorn.ranks", folder]
        processes = []
        for rank in range(count):
            environment = os.environ | {name: str(value) for name, value in {**common, "RANK": rank}.items()}
            errors = None if rank == 0 else subprocess.DEVNULL  # only one shows its progress, or why it failed
            processes.append(hosts.run(rank, command, cwd=ROOT, env=environment, stderr=errors))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"{plan}: exit codes {codes}")
        return _read(folder)


def _read(folder: str) -> list[dict[str, Any]]:
    rows = json.loads((Path(folder) / "measured.json").read_text())
    return [row | {"point": Point(*row["point"]) if row["point"] else None} for row in rows]


def collect(plans: Sequence[tuple[Plan, float | None]], until: float) -> list[dict[str, Any]]:
    """The rows of all plans, each with its `link`. A plan with a delay (in seconds, one way) runs on hosts.

    Each plan gets an equal share of the time until `until`, a time of time.time(); the first plan gets two shares.
    """
    rows: list[dict[str, Any]] = []
    for number, (plan, delay) in enumerate(plans):
        begun = time.time()
        left, plans_left = until - begun, len(plans) - number - 1
        share = left * 2 / (2 + plans_left) if number == 0 else left / (1 + plans_left)
        starts = 1 if plan.on_gpu or delay is not None else max(1, min(STARTS, int(share / START_SECONDS)))
        rows_of_starts = []
        for start in range(starts):
            timed = replace(plan, deadline=begun + share * (start + 1) / starts)
            rows_of_starts.append(on_this_machine(timed) if delay is None else on_hosts(timed, delay))
        rows += [row | {"link": plan.link, "delay": delay, "on_gpu": plan.on_gpu} for row in pooled(rows_of_starts)]
    return rows


def pooled(starts: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows that all starts have in common, each with the rounds of all starts.

    "seconds" and "in_collectives" are medians, "fastest" has both for the fastest round, "rounds" all seconds.
    """
    rows = []
    for row in starts[0]:
        same = [[other for other in start if all(other[key] == row[key] for key in KEY)] for start in starts]
        if all(same):
            calls = [tuple(call) for (other,) in same for call in other["calls"]]
            rows.append(
                {key: row[key] for key in (*KEY, "sent")}
                | {
                    "seconds": median(seconds for seconds, _ in calls),
                    "in_collectives": median(inside for _, inside in calls),
                    "fastest": min(calls),
                    "rounds": [seconds for seconds, _ in calls],
                }
            )
    return rows


def measured(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the report about codes: milliseconds of the codes of a step, and their parts."""
    return [
        row["point"]._asdict()
        | {
            "ranks": row["ranks"],
            "link": row["link"],
            "ms": _ms(row["seconds"]),
            "min": _ms(min(row["rounds"])),
            "max": _ms(max(row["rounds"])),
            "compute_ms": _ms(max(0.0, row["seconds"] - row["in_collectives"])),
            "all_reduce_ms": _ms(row["in_collectives"]),
            "collectives": len(row["sent"]),
            "bytes": sum(size for _, size in row["sent"]),
            "rounds": len(row["rounds"]),
        }
        for row in rows
        if row["point"] and not row["crowded"]
    ]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)
