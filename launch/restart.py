"""Decisions after a failure: which nodes still answer, how fewer nodes keep the batch, and whether to try again."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from config.recipe import ConfigError
from launch.nodes import Node
from launch.remote_commands import SRUN, SSH_OPTIONS

ANSWER_TIMEOUT = 20.0  # seconds


def reachable_nodes(how: str, nodes: Sequence[Node], ssh: Sequence[str]) -> list[Node]:
    """The nodes that answer within ANSWER_TIMEOUT; all are asked at once. how: "local", "ssh" or "srun"."""

    def answers(node: Node) -> bool:
        options = [word for option in SSH_OPTIONS for word in ("-o", option)]
        command = {
            "local": ["true"],
            "ssh": [*ssh, *options, node.host, "true"],
            "srun": [*SRUN, "--nodes", "1", "--ntasks", "1", "--nodelist", node.host, "true"],
        }[how]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    with ThreadPoolExecutor(len(nodes)) as pool:
        return [node for node, answered in zip(nodes, pool.map(answers, nodes), strict=True) if answered]


def keep_batch(nodes: Sequence[Node], batch: int, share: int) -> tuple[list[Node], int]:
    """Nodes and engine.accumulation that keep the global batch of `batch` images.

    Takes as many of the first `nodes` as the batch splits over evenly, and the smallest accumulation with which a
    process handles at most `share` images at once, and at least 2. Raises ConfigError if no number of nodes fits.
    """
    for count in range(len(nodes), 0, -1):
        total = sum(node.processes for node in nodes[:count])
        if batch % total == 0:
            images = batch // total
            parts = next((p for p in range(1, images + 1) if images % p == 0 and images // p <= share), images)
            if images // parts >= 2:
                return list(nodes[:count]), parts
    raise ConfigError(f"run.batch_size={batch} does not split evenly over any of the {len(nodes)} nodes that answer")


def no_progress(failed_at: int | None, step: int) -> bool:
    """Whether a run that failed after step `failed_at` (None: not yet) has failed again without a further step."""
    return failed_at is not None and step <= failed_at


def restart_delay(attempt: int, backoff: float) -> float:
    """Seconds to wait before restart number `attempt` (1, 2, ...): `backoff`, doubled each time, at most 300."""
    return min(300.0, min(300, backoff) * 2.0 ** min(attempt - 1, 9))
