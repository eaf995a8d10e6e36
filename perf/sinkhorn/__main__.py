"""What the codes of a step cost: on the ranks at hand, and, by a model fitted to them, on 1 to 512 nodes.

    python -m perf.sinkhorn [--json FILE] [--budget SECONDS] [--step-ms MS] [--latency-us 5,20,50] ...

Three variants give the same codes (perf/sinkhorn/variants.py):

    published   crop by crop, as the published algorithm goes: 8 all-reduces a step
    ours        model/sinkhorn.py: 3
    gather      one all-gather of all scores, then everything on every rank

They are timed in groups of 1, 2 and 4 ranks in turn: on GPUs (NCCL) where there are some, on processes of this machine
(gloo), and, as root on Linux, on four hosts of their own in network namespaces with 1 and 5 ms of delay each way. An
alpha-beta model (perf/sinkhorn/alpha_beta.py) is fitted to the all-reduces of one and two ranks (on one core, where
four would have to share) and must then predict those of four, and the codes: its error is part of the report. Nodes are
predicted for links of given latency and bandwidth between nodes (NCCL: ring or tree, whichever is faster), and for the
measured ones (gloo: a ring, one rank a node).

    python -m perf.sinkhorn --against-textbook [...]

times model/sinkhorn.py against Algorithm 1 of the paper on this machine's CPU instead, by ranks and threads; it has
options of its own (--against-textbook --help).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.cli import Parser
from perf.program import program

DELAYS = (0.001, 0.005)  # seconds one way, between hosts
# All-reduces by themselves: one number, and two crops' sums of 300, 3,000 and 30,000 prototypes.
BYTES = (4, 2_400, 24_000, 240_000)
TEXTBOOK = "--against-textbook"
CARRIED = 400_000  # bytes a step that a host sends
STEP_MS = 46.0
STEP = (
    "64 images a GPU at 1,400 images/s, an estimate for a ResNet-50 on an H100; the published run took 703 ms on V100s"
)
H100 = 3.35e12  # bytes a second from its memory


def main(arguments: list[str]) -> int:
    if TEXTBOOK in arguments:
        from perf.sinkhorn import textbook

        return textbook.main([argument for argument in arguments if argument != TEXTBOOK])
    options = parsed(arguments)

    def measure(_stopped: Sequence[BaseException]) -> dict[str, Any]:
        check(options)
        return run(options)

    def show(report: dict[str, Any]) -> None:
        from perf.sinkhorn.tables import show

        show(report)

    return program(measure, show, options.json)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.sinkhorn", __doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--budget", type=float, default=90, help="seconds, about; 3 rounds at least (default 90)")
    parser.add_argument("--rounds", type=int, default=20, help="of each start, at most (default 20)")
    parser.add_argument("--step-ms", type=float, help=f"a step, to take shares of (default {STEP_MS:g}: {STEP})")
    parser.add_argument("--prototypes", default="3000,300,30000,100000", help="the first goes with all other settings")
    parser.add_argument("--batch", default="64,16,256", help="images a rank, likewise (default 64,16,256)")
    parser.add_argument("--iterations", default="3,1,10", help="of Sinkhorn-Knopp, likewise (default 3,1,10)")
    parser.add_argument("--ranks", type=int, default=4, help="processes of this machine and hosts, at most (default 4)")
    hosts = "also hosts in network namespaces (default: where they can be made)"
    parser.add_argument("--hosts", action=argparse.BooleanOptionalAction, help=hosts)
    parser.add_argument("--latency-us", default="5,20,50", help="of a hop between nodes (default 5,20,50)")
    parser.add_argument("--bandwidth-gb", type=float, default=25, help="GB/s out of a node (default 25: 200 Gb/s)")
    parser.add_argument("--ranks-per-node", type=int, default=8, help="GPUs of a node (default 8)")
    return parser.parse_args(arguments)


def numbers(options: argparse.Namespace, name: str, of: type = int) -> list[Any]:
    """A flag's list. Raises ValueError, one line, if it is none or has something below or at 0."""
    given = getattr(options, name)
    flag = name.replace("_", "-")
    try:
        found = [of(word) for word in given.split(",")]
    except ValueError:
        raise ValueError(f"--{flag}={given}: expected numbers with commas between them") from None
    if min(found) <= 0 or not all(abs(number) < float("inf") for number in found):
        raise ValueError(f"--{flag}={given}: expected numbers above 0")
    return list(dict.fromkeys(found))


def check(options: argparse.Namespace) -> None:
    """Raises ValueError, one line, for arguments that cannot work."""
    for name in ("prototypes", "batch", "iterations"):
        numbers(options, name)
    numbers(options, "latency_us", float)
    for name in ("budget", "bandwidth_gb", *(["step_ms"] if options.step_ms is not None else [])):
        if not 0 < getattr(options, name) < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name):g}: expected more than 0")
    for name in ("ranks", "ranks_per_node"):
        if not 1 <= getattr(options, name) <= 64:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name)}: expected 1 to 64")
    if options.rounds < 3:
        raise ValueError(f"--rounds={options.rounds}: expected 3 or more")
    if options.json and not options.json.absolute().parent.is_dir():
        raise ValueError(f"--json={options.json}: there is no folder {options.json.absolute().parent}")
    if options.hosts:
        from perf.virtual_cluster.hosts import missing

        lack = missing()
        if lack:
            raise ValueError(f"--hosts: no hosts here: {lack}; leave it out for ranks of this machine only")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, fit, hold out, predict."""
    begun = time.time()

    from perf.machine import machine
    from perf.sinkhorn.measure import collect, measured, points
    from perf.sinkhorn.predict import held_out, links

    # ------------------------------------------------------------------ what is measured
    cores = len(os.sched_getaffinity(0))
    where = machine()
    shapes = points(*(numbers(options, name) for name in ("prototypes", "batch", "iterations")))
    plans, left_out = planned(options, shapes, len(where["gpus"]), cores)
    before = busy()
    rows = collect(plans, begun + options.budget)
    spent, own = (after - earlier for after, earlier in zip(busy(), before, strict=True))
    where["taken_by_others"] = round(max(0.0, spent - own) / ((time.time() - begun) * cores), 3)

    # ------------------------------------------------------------------ the model, and what it was not fitted on
    found = links(rows, cores)
    tested = held_out(rows, found, cores, where["cache"])

    # ------------------------------------------------------------------ on N nodes
    report = {
        "measured": measured(rows),
        "all_reduces": all_reduces(rows, found, cores),
        "model": model(found),
        "held_out": tested,
        "error": max((abs(row["error"]) for row in tested), default=None),
        **predicted(options, rows, found, shapes),
        "left_out": left_out,
    }
    report["settings"] |= {"cores": cores, "seconds": round(time.time() - begun, 1)}
    return report | {"machine": where}


def carried(point: Any, ranks: int) -> float:
    """Bytes that a rank sends for the codes of a step."""
    from perf.sinkhorn.alpha_beta import moved
    from perf.sinkhorn.variants import sent

    return sum(moved(kind, ranks) * size for kind, size in sent(point))


def busy() -> tuple[float, float]:
    """CPU seconds that this machine has spent so far, and those of this process and the children it has waited for."""
    import psutil

    times, own = psutil.cpu_times(), os.times()
    return sum(times) - times.idle - times.iowait - times.guest, sum(own[:4])


def planned(
    options: argparse.Namespace, shapes: Sequence[Any], gpus: int, cores: int
) -> tuple[list[tuple[Any, Any]], list[str]]:
    """Plans with the delay of their hosts (None without), and what is left out, with the reason."""
    from perf.sinkhorn.measure import GATHERED, LOCAL, fits
    from perf.sinkhorn.ranks import CROWD, Plan
    from perf.virtual_cluster.hosts import missing

    def groups(most: int) -> tuple[int, ...]:
        return tuple(sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most}))

    plans: list[tuple[Any, Any]] = []
    if gpus:
        plans.append((Plan("GPUs", groups(gpus), BYTES, tuple(shapes), 0.0, options.rounds, on_gpu=True), None))
    held = [point for point in shapes if fits(point, options.ranks)]
    crowded = options.ranks > max(cores, CROWD - 1)
    local = Plan(LOCAL, groups(options.ranks), BYTES, tuple(held), 0.0, options.rounds, crowded=crowded)
    plans.append((local, None))
    left_out = [
        f"gather of {point.prototypes:,} prototypes, batch {point.batch}: over {GATHERED >> 20} MB on each process"
        for point in shapes
        if point not in held
    ]
    lack = "--no-hosts" if options.hosts is False else missing()
    if lack or options.ranks < 2:
        return plans, [*left_out, f"hosts with delay: {lack or '--ranks=1'}"]
    # Over a delay the arithmetic is the same as without: few points. Long messages would time the process that carries
    # the packets, not the delay.
    few = [point for point in held if point[2:] == shapes[0][2:] and carried(point, options.ranks) < CARRIED]
    plans += [
        (replace(local, link=f"hosts {1e3 * delay:g} ms", points=tuple(few), crowded=False), delay) for delay in DELAYS
    ]
    return plans, left_out


def all_reduces(rows: Sequence[Any], found: Any, cores: int) -> list[dict[str, Any]]:
    """Each all-reduce by itself, and what the model says of it."""
    from perf.sinkhorn.alpha_beta import seconds_of

    table = []
    for row in rows:
        if row["point"] is None:
            link, own = found.get(row["link"]), None if row["on_gpu"] else 1 if row["crowded"] else cores
            told = link and round(1e6 * seconds_of(link, "all_reduce", row["bytes"], row["ranks"], own), 1)
            figures = {"us": 1e6 * row["seconds"], "min": 1e6 * min(row["rounds"]), "max": 1e6 * max(row["rounds"])}
            table.append(
                {"ranks": row["ranks"], "link": row["link"], "one_core": row["crowded"], "bytes": row["bytes"]}
                | {name: round(value, 1) for name, value in figures.items()}
                | {"predicted_us": told, "rounds": len(row["rounds"])}
            )
    return table


def model(found: Any) -> dict[str, Any]:
    """Each link's terms, and how they come together."""
    terms = {
        name: {
            "call_us": round(1e6 * link.call, 2),
            "alpha_us": round(1e6 * link.alpha, 2),
            "latency_us": round(1e6 * link.latency, 2),
            "work_us": round(1e6 * link.work, 2),
            "beta_us_per_mb": round(1e12 * link.per_byte, 3),
            "single": round(link.single, 3),
            "gb_per_second": round(1e-9 / link.per_byte, 3) if link.per_byte else None,
        }
        for name, link in found.items()
    }
    return {
        "links": terms,
        "ring": "call + 2 (n - 1) (latency + work s) + 2 (n - 1) / n bytes beta s",
        "tree": "call + 2 ceil(log2 n) (latency + work s) + 2 bytes beta s",
        "all_gather": "call + (n - 1) (latency + work s) + (n - 1) bytes beta s",
        "sharing": "s = n / cores for processes that share a machine with fewer cores, otherwise 1",
        "single": "a hop of one number takes this share of alpha",
        "fitted_on": [1, 2],
    }


def predicted(options: argparse.Namespace, rows: Sequence[Any], found: Any, shapes: Sequence[Any]) -> dict[str, Any]:
    """The keys `predicted`, `nodes_at_1_percent`, `nodes_at_5_percent`, `nodes_at`, `step_ms` and `settings`."""
    from perf.sinkhorn.predict import NVLINK, Network, compute_by_traffic, compute_of, given, nodes_at, predictions

    first = shapes[0]
    recipe = [point for point in shapes if point[1:] == first[1:]]
    wide = [point for point in shapes if point[2:] == first[2:]]
    on_gpu = [row for row in rows if row["on_gpu"]]
    own = [row for row in rows if row["link"] == rows[0]["link"]]
    if options.step_ms is None and not on_gpu:
        compute, source = compute_by_traffic(H100), f"estimated: memory traffic at {H100 / 1e12:g} TB/s, an H100"
    else:
        compute, source = compute_of(own), f"measured: {rows[0]['link']}"
    step = options.step_ms or STEP_MS
    latencies = numbers(options, "latency_us", float)
    near = found.get("GPUs", NVLINK)
    networks = [given(1e-6 * one, 1e9 * options.bandwidth_gb, options.ranks_per_node, near) for one in latencies]
    here = [Network(f"measured: {name}", link, link, 1) for name, link in found.items() if name != "GPUs"]
    table = predictions(wide, networks, step / 1e3, compute) + predictions(recipe, here, step / 1e3, compute)
    at = [
        {
            "link": network.name,
            "variant": point.variant,
            **{
                f"{percent}_percent": nodes_at(percent / 100, point, network, step / 1e3, compute) for percent in (1, 5)
            },
        }
        for network in (*networks, *here)
        for point in recipe
    ]
    middle = networks[len(networks) // 2].name
    return {
        "predicted": table,
        "nodes_at": at,
        **{
            f"nodes_at_{percent}_percent": {
                row["variant"]: row[f"{percent}_percent"] for row in at if row["link"] == middle
            }
            for percent in (1, 5)
        },
        "nodes_at_link": middle,
        "step_ms": step,
        "settings": {
            "step": STEP if options.step_ms is None else "--step-ms",
            "compute": source,
            "prototypes": first.prototypes,
            "batch": first.batch,
            "iterations": first.iterations,
            "crops": first.crops,
            "latency_us": latencies,
            "bandwidth_gb": options.bandwidth_gb,
            "ranks_per_node": options.ranks_per_node,
            "within_a_node": "measured: GPUs" if "GPUs" in found else "NCCL's own model of NVLink: 6.8 + 0.6 a hop, us",
            "budget": options.budget,
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
