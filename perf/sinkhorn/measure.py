"""Codes and their collectives timed over the links at hand: ranks of this machine, and hosts in network namespaces."""

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

PORT = 29577  # on the first host, where nothing else runs
# Bytes that a rank may gather. Beyond it glibc takes memory anew for each call, and page faults are most of the time.
GATHERED = 32 << 20
LOCAL = "local"
PLACE = ("ranks", "crowded", "bytes", "point")  # what tells rows of a link apart
# Starts of the processes of this machine: how their memory lies in its caches is drawn by lot at each.
STARTS, START_SECONDS = 3, 15  # at most, and of so many seconds at least


def points(prototypes: Sequence[int], batches: Sequence[int], iterations: Sequence[int]) -> list[Point]:
    """All variants with the first of each, then those that differ from it in one thing."""
    first = (prototypes[0], batches[0], iterations[0])
    shapes = [first]
    shapes += [(count, *first[1:]) for count in prototypes[1:]]
    shapes += [(first[0], batch, first[2]) for batch in batches[1:]]
    shapes += [(*first[:2], count) for count in iterations[1:]]
    return [Point(variant, *shape) for shape in shapes for variant in ("ours", "published", "gather")]


def fits(point: Point, ranks: int) -> bool:
    """Whether each of so many ranks of one machine can gather what this point needs."""
    return point.variant != "gather" or sent(point)[0].bytes * ranks <= GATHERED


def on_this_machine(plan: Plan) -> list[dict[str, Any]]:
    """Rows of perf.sinkhorn.ranks, of ranks that are processes of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(run_rank, max(plan.groups), plan, Path(folder), on_gpu=plan.on_gpu)
        return _read(folder)


def on_hosts(plan: Plan, delay: float) -> list[dict[str, Any]]:
    """The same, of hosts with a rank each and `delay` seconds one way between them. Raises RuntimeError."""
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
            told = None if rank == 0 else subprocess.DEVNULL  # one of them shows how far it is, or why it failed
            processes.append(hosts.run(rank, command, cwd=ROOT, env=environment, stderr=told))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"{plan}: exit codes {codes}")
        return _read(folder)


def _read(folder: str) -> list[dict[str, Any]]:
    rows = json.loads((Path(folder) / "measured.json").read_text())
    return [row | {"point": Point(*row["point"]) if row["point"] else None} for row in rows]


def collect(plans: Sequence[tuple[Plan, float | None]], until: float) -> list[dict[str, Any]]:
    """Rows of all plans, each with its `link`; by hosts where there is a delay (seconds, one way).

    Each plan gets an equal share of the time that is left until `until` (time.time()), the first twice that of others.
    """
    rows: list[dict[str, Any]] = []
    for number, (plan, delay) in enumerate(plans):
        begun = time.time()
        left, others = until - begun, len(plans) - number - 1
        share = left * 2 / (2 + others) if number == 0 else left / (1 + others)
        starts = 1 if plan.on_gpu or delay is not None else max(1, min(STARTS, int(share / START_SECONDS)))
        found = []
        for start in range(starts):
            timed = replace(plan, deadline=begun + share * (start + 1) / starts)
            found.append(on_this_machine(timed) if delay is None else on_hosts(timed, delay))
        rows += [row | {"link": plan.link, "delay": delay, "on_gpu": plan.on_gpu} for row in pooled(found)]
    return rows


def pooled(starts: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows that all starts have, with the rounds of all of them: medians in seconds, and both figures of the
    fastest."""
    rows = []
    for row in starts[0]:
        same = [[other for other in start if all(other[key] == row[key] for key in PLACE)] for start in starts]
        if all(same):
            calls = [tuple(call) for (other,) in same for call in other["calls"]]
            rows.append(
                {key: row[key] for key in (*PLACE, "sent")}
                | {
                    "seconds": median(seconds for seconds, _ in calls),
                    "in_collectives": median(inside for _, inside in calls),
                    "fastest": min(calls),
                    "rounds": [seconds for seconds, _ in calls],
                }
            )
    return rows


def measured(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the report has of codes: milliseconds of a step's codes, and what is in them."""
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
