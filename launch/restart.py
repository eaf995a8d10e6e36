"""After a failure: which nodes still answer, how the batch is kept on fewer of them, and when it is not worth a try."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from config.recipe import ConfigError
from launch.nodes import Node
from launch.remote_commands import PATIENCE, SRUN

ANSWER = 20.0  # seconds within which a node must answer


def answering(how: str, nodes: Sequence[Node], ssh: Sequence[str]) -> list[Node]:
    """The nodes that answer within `ANSWER` seconds; asked all at once."""

    def answers(node: Node) -> bool:
        options = [word for option in PATIENCE for word in ("-o", option)]
        ask = {
            "local": ["true"],
            "ssh": [*ssh, *options, node.host, "true"],
            "srun": [*SRUN, "--nodes", "1", "--ntasks", "1", "--nodelist", node.host, "true"],
        }[how]
        try:
            done = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    with ThreadPoolExecutor(len(nodes)) as pool:
        return [node for node, good in zip(nodes, pool.map(answers, nodes), strict=True) if good]


def fewer(nodes: Sequence[Node], batch: int, share: int) -> tuple[list[Node], int]:
    """The largest number of `nodes`, from the first on, over which a batch of `batch` images splits, and the
    accumulation with which no process takes more than `share` images at once, nor fewer than 2. Raises ConfigError if
    there is none."""
    for count in range(len(nodes), 0, -1):
        total = sum(node.processes for node in nodes[:count])
        if batch % total == 0:
            each = batch // total
            parts = next((p for p in range(1, each + 1) if each % p == 0 and each // p <= share), each)
            if each // parts >= 2:
                return list(nodes[:count]), parts
    raise ConfigError(f"run.batch_size={batch} splits over none of the {len(nodes)} nodes that answer")


def same_failure(before: int | None, step: int) -> bool:
    """Whether a run that failed after `before` steps (None: it has not failed yet) has failed there again."""
    return before is not None and step <= before


def wait_before(attempt: int, backoff: float) -> float:
    """Seconds before restart number `attempt` (1, 2, ...)."""
    return min(300.0, backoff * 2.0 ** (attempt - 1))
