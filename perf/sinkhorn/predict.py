"""What codes cost on N nodes, of what was measured on few ranks: links fitted, held-out ranks, exposed time a step.

Everything here is arithmetic. The codes of a step begin when the scores are there and the loss waits for them: all of
their time is exposed.

The model is of links that nothing else disturbs: it is fitted to, and held against, the fastest of each one's rounds
(`fastest`: its seconds, and those of them in collectives). Medians would take in who else was on the machine.

Where more ranks than cores are to be predicted, links are fitted to two ranks on one core (`crowded` rows): what it
costs to share a core, switching from one to the other above all, is then measured and not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

from perf.sinkhorn.alpha_beta import ONE_NUMBER, Algorithm, Link, Timed, error, fit, hops, moved, seconds_of, sharing
from perf.sinkhorn.variants import Message, Point, sent, worked_on

FITTED = 2  # ranks: models are fitted on one and two, and held against more
# Delays of the wire that pass at a hop of gloo's ring: whoever receives says that its buffer is ready, then it is sent.
# Measured between two hosts with 5 ms one way: 20.8 ms an all-reduce of two hops.
GLOO_DELAYS = 2
SINGLE = 4  # bytes of one float32
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Within a node of NVIDIA GPUs, from NCCL's own model (src/graph/tuning.cc, low-latency protocol over NVLink): 6.8 us a
# call and 0.6 us a hop. Bandwidth: 64 MiB at 198 GB/s, reported for eight H200.
NVLINK = Link(call=6.8e-6, latency=0.6e-6, work=0.0, per_byte=1 / 198e9)


@dataclass(frozen=True)
class Network:
    """Nodes of `per_node` ranks, `near` each other within a node and `far` between nodes; what its library can do."""

    name: str
    near: Link
    far: Link
    per_node: int
    algorithms: tuple[Algorithm, ...] = ("ring",)


# ---------------------------------------------------------------------------- fitted on few ranks


def links(rows: Sequence[Mapping[str, Any]], cores: int) -> dict[str, Link]:
    """Each link's fit to the all-reduces of one and two ranks; none for a link without those of two."""
    found = {}
    for name in dict.fromkeys(row["link"] for row in rows):
        own = [row for row in rows if row["link"] == name and not row["point"]]
        crowded = any(row["crowded"] for row in own)
        small = [
            Timed(row["ranks"], row["bytes"], row["fastest"][0])
            for row in own
            if row["ranks"] <= FITTED and row["crowded"] == (crowded and row["ranks"] == FITTED)
        ]
        if any(one.ranks > 1 and one.bytes > ONE_NUMBER for one in small):
            on = None if own[0]["on_gpu"] else 1 if crowded else cores
            found[name] = fit(small, GLOO_DELAYS * (own[0]["delay"] or 0.0), on)
    return found


def codes_seconds(
    point: Point, compute: float, meeting: float, link: Link, ranks: int, cores: int | None, on: int | None
) -> float:
    """The codes of a step over a link: compute, each collective, and how long the ranks wait until all have come.

    compute, meeting: seconds of FITTED ranks in a step, the first on `cores`, the second on `on` of them. Waiting for
    the last of n ranks grows with log2 n in all-reduces, one after the other, and in a single all-gather like the last
    of n exponential times, 1 + 1/2 + ... + 1/n.
    """
    slower = 1.0 if cores is None else sharing(ranks, cores) / sharing(FITTED, cores)
    crowd = 1.0 if cores is None or on is None else sharing(ranks, cores) / sharing(FITTED, on)
    rows, waits = 1.0, log2(ranks) / log2(FITTED)
    if point.variant == "gather":
        rows, waits = ranks / FITTED, _harmonic(ranks) / _harmonic(FITTED)
    on_the_way = sum(seconds_of(link, kind, size, ranks, cores) for kind, size in sent(point))
    return compute * rows * slower + meeting * crowd * waits + on_the_way


def _harmonic(count: int) -> float:
    return sum(1 / number for number in range(1, count + 1))


def held_out(
    rows: Sequence[Mapping[str, Any]], found: Mapping[str, Link], cores: int, cache: int | None = None
) -> list[dict[str, Any]]:
    """Predictions for more than FITTED ranks beside what was measured: of all-reduces, and of the codes of a step.

    cache: bytes that the cores have; None: no limit. Not held out are

    - codes for which the ranks together work on more: memory's bandwidth decides there, which is no term of the model;
    - all-reduces of a single number: gloo sends nothing of the ring's empty parts, so that a call does not wait for all
      ranks, and how long it takes depends on the call before (of four hosts 5 ms apart: 16 or 21 ms).
    """
    by_place = {(row["link"], row["ranks"], row["crowded"], row["point"]): row for row in rows if row["point"]}
    table = []
    for row in rows:
        name, ranks, point = row["link"], row["ranks"], row["point"]
        if ranks <= FITTED or name not in found or (point is None and row["bytes"] <= SINGLE):
            continue
        if point and cache and not row["on_gpu"] and ranks * worked_on(point, ranks) > cache:
            continue
        own = None if row["on_gpu"] else cores
        link = found[name]
        if point is None:
            predicted = seconds_of(link, "all_reduce", row["bytes"], ranks, own)
            what: dict[str, Any] = {"what": "all-reduce", "bytes": row["bytes"]}
        else:
            apart = by_place[name, FITTED, False, point]["fastest"]
            crowd = by_place.get((name, FITTED, True, point))
            seconds, on = (crowd["fastest"][0], 1) if crowd else (apart[0], own)
            compute = apart[0] - apart[1]
            shared = 1.0 if on is None or own is None else sharing(FITTED, on) / sharing(FITTED, own)
            on_the_way = sum(seconds_of(link, kind, size, FITTED, on) for kind, size in sent(point))
            meeting = max(0.0, seconds - compute * shared - on_the_way)
            predicted = codes_seconds(point, compute, meeting, link, ranks, own, on)
            what = {"what": "codes", **point._asdict()}
        taken = row["fastest"][0]
        figures = {"measured_us": 1e6 * taken, "median_us": 1e6 * row["seconds"], "predicted_us": 1e6 * predicted}
        table.append(
            what
            | {"ranks": ranks, "link": name}
            | {key: round(value, 1) for key, value in figures.items()}
            | {"error": round(error(predicted, taken), 4)}
        )
    return table


# ---------------------------------------------------------------------------- at N nodes


def given(latency: float, bandwidth: float, per_node: int, near: Link = NVLINK) -> Network:
    """GPUs under NCCL. latency: seconds of a hop between nodes; bandwidth: bytes a second out of a node."""
    far = Link(near.call, latency, 0.0, 1 / bandwidth)
    return Network(f"{1e6 * latency:g} us", near, far, per_node, ("ring", "tree"))


def between_nodes(network: Network, message: Message, nodes: int) -> float:
    """Seconds of a collective by the algorithm that is fastest, as NCCL chooses too.

    A ring through all ranks: of the hops that wait for each other two for each node at most lead out of it. A tree
    over the nodes: down a chain of a node's ranks and up again, and between nodes by the tree.
    """
    kind, size = message
    ranks, per_node = nodes * network.per_node, network.per_node
    slowest = max(network.near.per_byte if per_node > 1 else 0.0, network.far.per_byte if nodes > 1 else 0.0)
    found = []
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
        found.append(network.near.call + near * network.near.alpha + far * network.far.alpha + passed * size * slowest)
    return min(found)


def predictions(
    points: Iterable[Point],
    networks: Iterable[Network],
    step: float,
    compute: Callable[[Point, int], float | None],
    nodes: Sequence[int] = NODES,
) -> list[dict[str, Any]]:
    """Exposed milliseconds of the codes a step at so many nodes, and their share of a step of `step` seconds.

    compute: seconds of a point's arithmetic on a rank among so many; None where it is not known: no row.
    """
    rows = []
    points = list(points)
    for network in networks:
        for point in points:
            for count in nodes:
                own = compute(point, count * network.per_node)
                if own is None:
                    continue
                on_the_way = sum(between_nodes(network, message, count) for message in sent(point))
                rows.append(
                    {
                        "variant": point.variant,
                        "prototypes": point.prototypes,
                        "nodes": count,
                        "ranks": count * network.per_node,
                        "link": network.name,
                        "latency_us": round(1e6 * network.far.alpha, 2),
                        "compute_ms": round(1e3 * own, 4),
                        "all_reduce_ms": round(1e3 * on_the_way, 4),
                        "exposed_ms": round(1e3 * (own + on_the_way), 4),
                        "share": round((own + on_the_way) / step, 6),
                    }
                )
    return rows


def nodes_at(
    share: float, point: Point, network: Network, step: float, compute: Callable[[Point, int], float | None]
) -> int | None:
    """The fewest nodes, of 1 to 512, at which the codes take more than this share of the step; None if at none."""
    for row in predictions([point], [network], step, compute, range(1, NODES[-1] + 1)):
        if row["share"] > share:
            return int(row["nodes"])
    return None


def compute_of(rows: Sequence[Mapping[str, Any]]) -> Callable[[Point, int], float | None]:
    """Seconds of arithmetic as measured on the fewest ranks; what is gathered grows with the ranks."""
    fewest: dict[Point, tuple[int, float]] = {}
    for row in sorted((row for row in rows if row["point"] and not row["crowded"]), key=lambda row: -row["ranks"]):
        fewest[row["point"]] = (row["ranks"], row["seconds"] - row["in_collectives"])

    def seconds(point: Point, ranks: int) -> float | None:
        if point not in fewest:
            return None
        measured_on, taken = fewest[point]
        return taken * (ranks / measured_on if point.variant == "gather" else 1.0)

    return seconds


def compute_by_traffic(bandwidth: float) -> Callable[[Point, int], float | None]:
    """Seconds of arithmetic estimated from memory traffic alone, at so many bytes a second.

    The scores are read and their exponentials written once, then read for the sums of samples and of prototypes in
    each iteration, then read and written as codes: 4 + 2 iterations passes over float32.
    """

    def seconds(point: Point, ranks: int) -> float | None:
        rows = point.crops * point.batch * (ranks if point.variant == "gather" else 1)
        return 4.0 * rows * point.prototypes * (4 + 2 * point.iterations) / bandwidth

    return seconds
