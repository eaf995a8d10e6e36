"""Times an all-reduce over all processes. `launch.cluster_check` runs it on all nodes.

Rank 0 prints the latency (8 bytes) and the bandwidth (32 MiB) per process of a ring all-reduce, in which each of W
processes sends and receives 2 (W - 1) / W times the bytes.
"""

from __future__ import annotations

import sys
import time
from statistics import median

from common.cli import note
from training.distributed import cluster_from_environment, connected
from training.rank_status import mark_ending, watched

SMALL, LARGE = 8, 32 << 20  # bytes


def main(_arguments: list[str]) -> int:
    import torch
    import torch.distributed as dist

    cluster = cluster_from_environment()
    device = cluster.take_device()
    with connected(cluster, timeout=60.0):

        def seconds(size: int, times: int) -> float:
            """Median time of `times` all-reduces of `size` bytes, after one that does not count."""
            durations = []
            for _ in range(times + 1):
                values = torch.full((size // 4,), float(cluster.rank), device=device)
                begun = time.perf_counter()
                dist.all_reduce(values)
                if abs(values[0].item() - cluster.world_size * (cluster.world_size - 1) / 2) > 1e-3:
                    raise RuntimeError("an all-reduce gave a wrong sum")
                durations.append(time.perf_counter() - begun)
            return median(durations[1:])

        latency, duration = seconds(SMALL, 20), seconds(LARGE, 3)
        bandwidth = 2 * (cluster.world_size - 1) / cluster.world_size * LARGE / duration
        if cluster.main:
            line = f"all-reduce over {cluster.world_size} processes: {latency * 1e3:.2f} ms for {SMALL} bytes, "
            line += f"{bandwidth / 1e9:.2f} GB/s for {LARGE >> 20} MiB"
            note(line)
    mark_ending("all-reduce")
    return 0


if __name__ == "__main__":
    sys.exit(watched(main, sys.argv[1:]))
