"""Predicts the cost of codes on N nodes from measurements on few ranks: fitted links, held-out ranks, time a step.

All functions are arithmetic. The codes of a step start when the scores are known, and the loss waits for them: all of
their time is exposed.

The model describes undisturbed links: it is fitted to, and compared with, the fastest of all rounds (`fastest`: its
seconds, and its seconds in collectives). Medians would include the work of other programs.

To predict more ranks than cores, links are fitted to two ranks on one core (`crowded` rows). The cost of sharing a
core, above all of switching between processes, is then measured and not assumed.

The rows are those of perf.sinkhorn.measure.collect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

from perf.sinkhorn.alpha_beta import ONE_NUMBER, Algorithm, Link, Timed, error, fit, hops, moved, seconds_of, sharing
from perf.sinkhorn.variants import Message, Point, sent, worked_on

FITTED = 2  # ranks: the model is fitted on one and two, and compared with more
# Delays of the wire in a hop of gloo's ring: the receiver reports that its buffer is ready, then the sender sends.
# Measured between two hosts with 5 ms one way: 20.8 ms for an all-reduce of two hops.
GLOO_DELAYS = 2
SINGLE = 4  # bytes of one float32
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Within a node of NVIDIA GPUs, from NCCL's cost model (src/graph/tuning.cc, low-latency protocol over NVLink): 6.8 us a
# call and 0.6 us a hop. Bandwidth: 64 MiB at 198 GB/s, reported for eight H200.
NVLINK = Link(call=6.8e-6, latency=0.6e-6, work=0.0, per_byte=1 / 198e9)


@dataclass(frozen=True)
class Network:
    """Nodes of `per_node` ranks. near, far: links within and between nodes; algorithms: of the library."""

    name: str
    near: Link
    far: Link
    per_node: int
    algorithms: tuple[Algorithm, ...] = ("ring",)


# ---------------------------------------------------------------------------- fitted on few ranks


def links(rows: Sequence[Mapping[str, Any]], cores: int) -> dict[str, Link]:
    """The fit of each link to its all-reduces of one and two ranks; links without those of two are left out."""
    fits = {}
    for name in dict.fromkeys(row["link"] for row in rows):
        link_rows = [row for row in rows if row["link"] == name and not row["point"]]
        crowded = any(row["crowded"] for row in link_rows)
        fitted_rows = [
            Timed(row["ranks"], row["bytes"], row["fastest"][0])
            for row in link_rows
            if row["ranks"] <= FITTED and row["crowded"] == (crowded and row["ranks"] == FITTED)
        ]
        if any(one.ranks > 1 and one.bytes > ONE_NUMBER for one in fitted_rows):
            shared_cores = None if link_rows[0]["on_gpu"] else 1 if crowded else cores
            fits[name] = fit(fitted_rows, GLOO_DELAYS * (link_rows[0]["delay"] or 0.0), shared_cores)
    return fits


def codes_seconds(
    point: Point, compute: float, meeting: float, link: Link, ranks: int, cores: int | None, meeting_cores: int | None
) -> float:
    """Seconds of the codes of a step: compute, collectives, and the wait until all ranks have arrived.

    compute, meeting: seconds of FITTED ranks in a step, measured on `cores` and on `meeting_cores`. The wait for the
    last of n ranks grows with log2 n in successive all-reduces; in a single all-gather it grows like the largest of n
    exponential times, 1 + 1/2 + ... + 1/n.
    """
    compute_factor = 1.0 if cores is None else sharing(ranks, cores) / sharing(FITTED, cores)
    wait_factor = (
        1.0 if cores is None or meeting_cores is None else sharing(ranks, cores) / sharing(FITTED, meeting_cores)
    )
    rows, waits = 1.0, log2(ranks) / log2(FITTED)
    if point.variant == "gather":
        rows, waits = ranks / FITTED, _harmonic(ranks) / _harmonic(FITTED)
    in_transit = sum(seconds_of(link, kind, size, ranks, cores) for kind, size in sent(point))
    return compute * rows * compute_factor + meeting * wait_factor * waits + in_transit


def _harmonic(count: int) -> float:
    return sum(1 / number for number in range(1, count + 1))


def held_out(
    rows: Sequence[Mapping[str, Any]], fitted: Mapping[str, Link], cores: int, cache: int | None = None
) -> list[dict[str, Any]]:
    """Predictions and measurements for more than FITTED ranks: of all-reduces, and of the codes of a step.

    fitted: the fitted links. cache: bytes of the cores' cache, None for no limit. Left out are

    - codes for which all ranks together work on more bytes: memory bandwidth then decides, which the model lacks;
    - all-reduces of a single number: gloo sends no empty parts of the ring, so a call does not wait for all ranks, and
      its time depends on the call before (for four hosts with 5 ms between them: 16 or 21 ms).
    """
    by_place = {(row["link"], row["ranks"], row["crowded"], row["point"]): row for row in rows if row["point"]}
    table = []
    for row in rows:
        name, ranks, point = row["link"], row["ranks"], row["point"]
        if ranks <= FITTED or name not in fitted or (point is None and row["bytes"] <= SINGLE):
            continue
        if point and cache and not row["on_gpu"] and ranks * worked_on(point, ranks) > cache:
            continue
        shared_cores = None if row["on_gpu"] else cores
        link = fitted[name]
        if point is None:
            predicted = seconds_of(link, "all_reduce", row["bytes"], ranks, shared_cores)
            what: dict[str, Any] = {"what": "all-reduce", "bytes": row["bytes"]}
        else:
            uncrowded = by_place[name, FITTED, False, point]["fastest"]
            crowded_row = by_place.get((name, FITTED, True, point))
            seconds, fitted_cores = (crowded_row["fastest"][0], 1) if crowded_row else (uncrowded[0], shared_cores)
            compute = uncrowded[0] - uncrowded[1]
            factor = (
                1.0
                if fitted_cores is None or shared_cores is None
                else sharing(FITTED, fitted_cores) / sharing(FITTED, shared_cores)
            )
            in_transit = sum(seconds_of(link, kind, size, FITTED, fitted_cores) for kind, size in sent(point))
            meeting = max(0.0, seconds - compute * factor - in_transit)
            predicted = codes_seconds(point, compute, meeting, link, ranks, shared_cores, fitted_cores)
            what = {"what": "codes", **point._asdict()}
        measured = row["fastest"][0]
        figures = {"measured_us": 1e6 * measured, "median_us": 1e6 * row["seconds"], "predicted_us": 1e6 * predicted}
        table.append(
            what
            | {"ranks": ranks, "link": name}
            | {key: round(value, 1) for key, value in figures.items()}
            | {"error": round(error(predicted, measured), 4)}
        )
    return table


# ---------------------------------------------------------------------------- at N nodes


def given(latency: float, bandwidth: float, per_node: int, near: Link = NVLINK) -> Network:
    """A network of GPUs with NCCL. latency: seconds of a hop between nodes; bandwidth: bytes a second out of a node."""
    far = Link(near.call, latency, 0.0, 1 / bandwidth)
    return Network(f"{1e6 * latency:g} us", near, far, per_node, ("ring", "tree"))


def between_nodes(network: Network, message: Message, nodes: int) -> float:
    """Seconds of a collective with the fastest algorithm, which NCCL also chooses.

    A ring passes through all ranks; of its successive hops at most two for each node lead out of the node. A tree over
    the nodes goes down a chain of a node's ranks and up again, and between nodes along the tree.
    """
    kind, size = message
    ranks, per_node = nodes * network.per_node, network.per_node
    slowest = max(network.near.per_byte if per_node > 1 else 0.0, network.far.per_byte if nodes > 1 else 0.0)
    seconds = []
    for algorithm in network.algorithms:
        if algorithm == "ring" or kind == "all_gather":
            every = hops(kind, ranks)
            rounds = 2 if kind == "all_reduce" else 1
            far = 0 if nodes == 1 else min(every, rounds * (nodes - (per_node == 1)))
            near = every - far
            passed = moved(kind, ranks)
        else:
            near, far = 2 * (per_node - 1), 2 * ceil(log2(nodes))
            passed = moved(kind, ranks, "tree")
        seconds.append(
            network.near.call + near * network.near.alpha + far * network.far.alpha + passed * size * slowest
        )
    return min(seconds)


def predictions(
    points: Iterable[Point],
    networks: Iterable[Network],
    step: float,
    compute: Callable[[Point, int], float | None],
    nodes: Sequence[int] = NODES,
) -> list[dict[str, Any]]:
    """Rows with the exposed milliseconds of the codes of a step, and their share of a step of `step` seconds.

    compute: from a point and the number of ranks to the seconds of arithmetic on a rank; None if unknown, for no row.
    """
    rows = []
    points = list(points)
    for network in networks:
        for point in points:
            for count in nodes:
                arithmetic = compute(point, count * network.per_node)
                if arithmetic is None:
                    continue
                in_transit = sum(between_nodes(network, message, count) for message in sent(point))
                rows.append(
                    {
                        "variant": point.variant,
                        "prototypes": point.prototypes,
                        "nodes": count,
                        "ranks": count * network.per_node,
                        "link": network.name,
                        "latency_us": round(1e6 * network.far.alpha, 2),
                        "compute_ms": round(1e3 * arithmetic, 4),
                        "all_reduce_ms": round(1e3 * in_transit, 4),
                        "exposed_ms": round(1e3 * (arithmetic + in_transit), 4),
                        "share": round((arithmetic + in_transit) / step, 6),
                    }
                )
    return rows


def nodes_at(
    share: float, point: Point, network: Network, step: float, compute: Callable[[Point, int], float | None]
) -> int | None:
    """The smallest number of nodes, from 1 to 512, on which codes take more than `share` of the step, or None."""
    for row in predictions([point], [network], step, compute, range(1, NODES[-1] + 1)):
        if row["share"] > share:
            return int(row["nodes"])
    return None


def compute_of(rows: Sequence[Mapping[str, Any]]) -> Callable[[Point, int], float | None]:
    """The seconds of arithmetic as measured on the fewest ranks, for `predictions`; gather's grow with the ranks."""
    fewest: dict[Point, tuple[int, float]] = {}
    for row in sorted((row for row in rows if row["point"] and not row["crowded"]), key=lambda row: -row["ranks"]):
        fewest[row["point"]] = (row["ranks"], row["seconds"] - row["in_collectives"])

    def seconds(point: Point, ranks: int) -> float | None:
        if point not in fewest:
            return None
        measured_on, arithmetic = fewest[point]
        return arithmetic * (ranks / measured_on if point.variant == "gather" else 1.0)

    return seconds


def compute_by_traffic(bandwidth: float) -> Callable[[Point, int], float | None]:
    """The seconds of arithmetic estimated from memory traffic at `bandwidth` bytes a second, for `predictions`.

    Scores are read and their exponentials written once; each iteration reads these for the sums over samples and over
    prototypes; then they are read and written as codes: 4 + 2 * iterations passes over float32.
    """

    def seconds(point: Point, ranks: int) -> float | None:
        rows = point.crops * point.batch * (ranks if point.variant == "gather" else 1)
        return 4.0 * rows * point.prototypes * (4 + 2 * point.iterations) / bandwidth

    return seconds
