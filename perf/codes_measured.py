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
from typing import Any

from config.recipe import ROOT
from perf.codes_ranks import Plan, run_rank
from perf.codes_variants import Point, sent
from perf.ranks import run_ranks

PORT = 29577  # on the first host, where nothing else runs
# Bytes that a rank may gather. Beyond it glibc takes memory anew for each call, and page faults are most of the time.
GATHERED = 32 << 20
LOCAL = "local"


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
    """Rows of perf.codes_ranks, of ranks that are processes of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(run_rank, max(plan.groups), plan, Path(folder), on_gpu=plan.on_gpu)
        return _read(folder)


def on_hosts(plan: Plan, delay: float) -> list[dict[str, Any]]:
    """The same, of hosts with a rank each and `delay` seconds one way between them. Raises RuntimeError."""
    from perf.hosts import Hosts

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
        command = [sys.executable, "-W", "ignore", "-m", "perf.codes_ranks", folder]
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
        left, others = until - time.time(), len(plans) - number - 1
        share = left * 2 / (2 + others) if number == 0 else left / (1 + others)
        timed = replace(plan, deadline=time.time() + share)
        found = on_this_machine(timed) if delay is None else on_hosts(timed, delay)
        rows += [row | {"link": plan.link, "delay": delay, "on_gpu": plan.on_gpu} for row in found]
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
        if row["point"]
    ]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)
