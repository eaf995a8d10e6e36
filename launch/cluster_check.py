"""Checks whether the nodes are fit for a run: `make cluster-check`.

    python -m launch.cluster_check [--nodes N] [--processes P] [--hostfile FILE] [--ssh SSH] RECIPE.yaml [key=value ...]

Each node must answer, have the same code, lock file, dataset, GPUs and time as the others, and room for checkpoints.
(`make train` checks the same before it starts, but of the dataset only that data.path exists.) Then an all-reduce over
all processes shows the network's latency and bandwidth.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from common.cli import exit_on_mistake
from common.machine import visible_gpus
from config.recipe import load_config
from launch.nodes import Node
from launch.preflight import ask_nodes, find_problems
from launch.start import choose_nodes, fetch_demo, parse_arguments, start_once


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    options = parse_arguments(arguments)
    with exit_on_mistake():
        config, ssh = load_config([options.recipe, *options.settings]), shlex.split(options.ssh)
        how, nodes = choose_nodes(options.nodes, options.processes, options.hostfile, dict(os.environ), visible_gpus())
        if how == "local":
            fetch_demo(config)
    answers = ask_nodes(how, nodes, ssh, config, dataset=True)
    with exit_on_mistake():
        problems = find_problems(answers, nodes, config, how=how)
    print_table(nodes, answers)
    for line in problems:
        print(f"wrong: {line}")
    if any("error" in facts for facts in answers):
        return 1
    outcome = start_once(how, nodes, ssh, config, [], program="launch.network_test")
    if outcome.code or outcome.ended != "all-reduce":
        print(f"wrong: the all-reduce over all processes failed; {outcome.died or 'its errors are above'}")
        return 1
    print("wrong: see above" if problems else "all good")
    return int(bool(problems))


def print_table(nodes: Sequence[Node], answers: Sequence[Mapping[str, Any]]) -> None:
    """Print the facts as a table, one row per node."""
    from rich.console import Console
    from rich.table import Table

    keys = ("host", "commit", "code", "lock", "dataset", "free_gb", "clock_off", "cores")
    table = Table("node", "processes", *keys, "GPUs")
    for node, facts in zip(nodes, answers, strict=True):
        if "error" in facts:
            table.add_row(node.host, str(node.processes), str(facts["error"]))
        else:
            values = [str(facts.get(key, "")) for key in keys]
            gpus = f"{len(facts['gpus'])} {facts['gpus'][0]}" if facts["gpus"] else "none"
            table.add_row(node.host, str(node.processes), *values, gpus)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
