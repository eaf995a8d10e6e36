"""The cost of the codes of a step: measured on this machine's ranks, and predicted by a fitted model for 512 nodes.

    python -m perf.sinkhorn [--json FILE] [--budget SECONDS] [--step-ms MS] [--latency-us 5,20,50] ...

Three variants give the same codes (perf/sinkhorn/variants.py):

    published   crop by crop, as in the published algorithm: 8 all-reduces a step
    ours        model/sinkhorn.py: 3 all-reduces
    gather      one all-gather of all scores, then all computation on every rank

Groups of 1, 2 and 4 ranks take turns: on GPUs (NCCL) if there are any, on processes of this machine (gloo), and, as
root on Linux, on four hosts in network namespaces with 1 and 5 ms of delay each way. An alpha-beta model
(perf/sinkhorn/alpha_beta.py) is fitted to the all-reduces of one and two ranks (two on one core, if four ranks have to
share cores). It then predicts the all-reduces of four ranks, and the codes; the report has its error. The predictions
for many nodes use links with a given latency and bandwidth between nodes (NCCL: the faster one of ring and tree), and
the measured links (gloo: a ring, one rank a node).

    python -m perf.sinkhorn --against-textbook [...]

compares model/sinkhorn.py with Algorithm 1 of the paper on this machine's CPU instead, by ranks and threads; see
--against-textbook --help.
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
# All-reduces without codes: one number, and the sums of two crops for 300, 3,000 and 30,000 prototypes.
BYTES = (4, 2_400, 24_000, 240_000)
TEXTBOOK = "--against-textbook"
MAX_SENT = 400_000  # bytes that a host may send in a step
STEP_MS = 46.0
STEP = (
    "64 images a GPU at 1,400 images/s, an estimate for a ResNet-50 on an H100; the published run took 703 ms on V100s"
)
H100 = 3.35e12  # bytes a second from the memory of an H100


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
    parser.add_argument("--budget", type=float, default=90, help="seconds, about; at least 3 rounds run (default 90)")
    parser.add_argument("--rounds", type=int, default=20, help="largest number of rounds of each start (default 20)")
    parser.add_argument(
        "--step-ms", type=float, help=f"time of a step, for the share of codes (default {STEP_MS:g}: {STEP})"
    )
    parser.add_argument(
        "--prototypes", default="3000,300,30000,100000", help="numbers; the first goes with all other settings"
    )
    parser.add_argument("--batch", default="64,16,256", help="images a rank, in the same way (default 64,16,256)")
    parser.add_argument("--iterations", default="3,1,10", help="of Sinkhorn-Knopp, in the same way (default 3,1,10)")
    parser.add_argument("--ranks", type=int, default=4, help="largest number of processes or hosts (default 4)")
    hosts = "use also hosts in network namespaces (default: if this machine permits)"
    parser.add_argument("--hosts", action=argparse.BooleanOptionalAction, help=hosts)
    parser.add_argument("--latency-us", default="5,20,50", help="of a hop between nodes (default 5,20,50)")
    parser.add_argument("--bandwidth-gb", type=float, default=25, help="GB/s out of a node (default 25: 200 Gb/s)")
    parser.add_argument("--ranks-per-node", type=int, default=8, help="GPUs of a node (default 8)")
    return parser.parse_args(arguments)


def numbers(options: argparse.Namespace, name: str, kind: type = int) -> list[Any]:
    """The numbers kind a flag with commas. Raises ValueError, one line, if it is not a list kind numbers above 0."""
    given = getattr(options, name)
    flag = name.replace("_", "-")
    try:
        values = [kind(word) for word in given.split(",")]
    except ValueError:
        raise ValueError(f"--{flag}={given}: expected numbers separated by commas") from None
    if min(values) <= 0 or not all(abs(number) < float("inf") for number in values):
        raise ValueError(f"--{flag}={given}: expected numbers above 0")
    return list(dict.fromkeys(values))


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

        reason = missing()
        if reason:
            raise ValueError(f"--hosts: this machine cannot make hosts: {reason}; use --no-hosts")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, fit the model, test it on held-out ranks, and predict; returns the report."""
    begun = time.time()

    from perf.machine import machine
    from perf.sinkhorn.measure import collect, measured, points
    from perf.sinkhorn.predict import held_out, links

    # ------------------------------------------------------------------ measure
    cores = len(os.sched_getaffinity(0))
    machine_facts = machine()
    shapes = points(*(numbers(options, name) for name in ("prototypes", "batch", "iterations")))
    plans, left_out = planned(options, shapes, len(machine_facts["gpus"]), cores)
    before = busy()
    rows = collect(plans, begun + options.budget)
    spent, own = (after - earlier for after, earlier in zip(busy(), before, strict=True))
    machine_facts["taken_by_others"] = round(max(0.0, spent - own) / ((time.time() - begun) * cores), 3)

    # ------------------------------------------------------------------ fit the model, and test it on other ranks
    fitted = links(rows, cores)
    tested = held_out(rows, fitted, cores, machine_facts["cache"])

    # ------------------------------------------------------------------ predict N nodes
    report = {
        "measured": measured(rows),
        "all_reduces": all_reduces(rows, fitted, cores),
        "model": model(fitted),
        "held_out": tested,
        "error": max((abs(row["error"]) for row in tested), default=None),
        **predicted(options, rows, fitted, shapes),
        "left_out": left_out,
    }
    report["settings"] |= {"cores": cores, "seconds": round(time.time() - begun, 1)}
    return report | {"machine": machine_facts}


def bytes_sent(point: Any, ranks: int) -> float:
    """Bytes that a rank sends for the codes of a step."""
    from perf.sinkhorn.alpha_beta import moved
    from perf.sinkhorn.variants import sent

    return sum(moved(kind, ranks) * size for kind, size in sent(point))


def busy() -> tuple[float, float]:
    """CPU seconds of this machine so far; and of this process and of its children that have ended."""
    import psutil

    times, own = psutil.cpu_times(), os.times()
    return sum(times) - times.idle - times.iowait - times.guest, sum(own[:4])


def planned(
    options: argparse.Namespace, shapes: Sequence[Any], gpus: int, cores: int
) -> tuple[list[tuple[Any, Any]], list[str]]:
    """The plans, each with the delay of its hosts in seconds (None: no hosts), and what is left out and why."""
    from perf.sinkhorn.measure import GATHERED, LOCAL, fits
    from perf.sinkhorn.ranks import CROWD, Plan
    from perf.virtual_cluster.hosts import missing

    def groups(largest: int) -> tuple[int, ...]:
        return tuple(sorted({*(2**power for power in range(largest.bit_length()) if 2**power <= largest), largest}))

    plans: list[tuple[Any, Any]] = []
    if gpus:
        plans.append((Plan("GPUs", groups(gpus), BYTES, tuple(shapes), 0.0, options.rounds, on_gpu=True), None))
    local_points = [point for point in shapes if fits(point, options.ranks)]
    crowded = options.ranks > max(cores, CROWD - 1)
    local = Plan(LOCAL, groups(options.ranks), BYTES, tuple(local_points), 0.0, options.rounds, crowded=crowded)
    plans.append((local, None))
    left_out = [
        f"gather of {point.prototypes:,} prototypes, batch {point.batch}: over {GATHERED >> 20} MB on each process"
        for point in shapes
        if point not in local_points
    ]
    reason = "--no-hosts" if options.hosts is False else missing()
    if reason or options.ranks < 2:
        return plans, [*left_out, f"hosts with delay: {reason or '--ranks=1'}"]
    # Few points, since the arithmetic is the same as without delay. Long messages would measure the process that
    # forwards the packets, not the delay.
    few_points = [
        point for point in local_points if point[2:] == shapes[0][2:] and bytes_sent(point, options.ranks) < MAX_SENT
    ]
    plans += [
        (replace(local, link=f"hosts {1e3 * delay:g} ms", points=tuple(few_points), crowded=False), delay)
        for delay in DELAYS
    ]
    return plans, left_out


def all_reduces(rows: Sequence[Any], fitted: Any, cores: int) -> list[dict[str, Any]]:
    """Rows of the all-reduces without codes: measured, and predicted by the model."""
    from perf.sinkhorn.alpha_beta import seconds_of

    table = []
    for row in rows:
        if row["point"] is None:
            link, shared_cores = fitted.get(row["link"]), None if row["on_gpu"] else 1 if row["crowded"] else cores
            predicted = link and round(
                1e6 * seconds_of(link, "all_reduce", row["bytes"], row["ranks"], shared_cores), 1
            )
            figures = {"us": 1e6 * row["seconds"], "min": 1e6 * min(row["rounds"]), "max": 1e6 * max(row["rounds"])}
            table.append(
                {"ranks": row["ranks"], "link": row["link"], "one_core": row["crowded"], "bytes": row["bytes"]}
                | {name: round(value, 1) for name, value in figures.items()}
                | {"predicted_us": predicted, "rounds": len(row["rounds"])}
            )
    return table


def model(fitted: Any) -> dict[str, Any]:
    """The fitted terms of each link, and the formulas that combine them."""
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
        for name, link in fitted.items()
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


def predicted(options: argparse.Namespace, rows: Sequence[Any], fitted: Any, shapes: Sequence[Any]) -> dict[str, Any]:
    """The part of the report about nodes: `predicted`, `nodes_at...`, `step_ms` and `settings`."""
    from perf.sinkhorn.predict import NVLINK, Network, compute_by_traffic, compute_of, given, nodes_at, predictions

    first = shapes[0]
    all_variants = [point for point in shapes if point[1:] == first[1:]]
    all_prototypes = [point for point in shapes if point[2:] == first[2:]]
    on_gpu = [row for row in rows if row["on_gpu"]]
    first_link = [row for row in rows if row["link"] == rows[0]["link"]]
    if options.step_ms is None and not on_gpu:
        compute, source = (
            compute_by_traffic(H100),
            f"estimated: memory traffic thresholds {H100 / 1e12:g} TB/s, an H100",
        )
    else:
        compute, source = compute_of(first_link), f"measured: {rows[0]['link']}"
    step = options.step_ms or STEP_MS
    latencies = numbers(options, "latency_us", float)
    within_node = fitted.get("GPUs", NVLINK)
    networks = [given(1e-6 * one, 1e9 * options.bandwidth_gb, options.ranks_per_node, within_node) for one in latencies]
    measured_networks = [Network(f"measured: {name}", link, link, 1) for name, link in fitted.items() if name != "GPUs"]
    table = predictions(all_prototypes, networks, step / 1e3, compute) + predictions(
        all_variants, measured_networks, step / 1e3, compute
    )
    thresholds = [
        {
            "link": network.name,
            "variant": point.variant,
            **{
                f"{percent}_percent": nodes_at(percent / 100, point, network, step / 1e3, compute) for percent in (1, 5)
            },
        }
        for network in (*networks, *measured_networks)
        for point in all_variants
    ]
    middle = networks[len(networks) // 2].name
    return {
        "predicted": table,
        "nodes_at": thresholds,
        **{
            f"nodes_at_{percent}_percent": {
                row["variant"]: row[f"{percent}_percent"] for row in thresholds if row["link"] == middle
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
            "within_a_node": "measured: GPUs"
            if "GPUs" in fitted
            else "NCCL's first_link model of NVLink: 6.8 + 0.6 a hop, us",
            "budget": options.budget,
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
