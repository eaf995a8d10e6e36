"""Are the nodes fit for a run? (make cluster-check; make train does the quick half of it before it starts)

    python -m launch.cluster_check [--nodes N] [--processes P] [--hostfile FILE] [--ssh SSH] RECIPE.yaml [key=value ...]

Every node: does it answer, has it the same code, lock file, dataset (quick: is data.path there), GPUs and time as the
others, and disk for checkpoints? Then an all-reduce over all processes: does it work, its latency and its bandwidth.
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
from launch.preflight import ask_nodes, mistakes
from launch.start import choose_nodes, fetch_demo, parsed, start_once


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    options = parsed(arguments)
    with exit_on_mistake():
        config, ssh = load_config([options.recipe, *options.settings]), shlex.split(options.ssh)
        how, nodes = choose_nodes(options.nodes, options.processes, options.hostfile, dict(os.environ), visible_gpus())
        if how == "local":
            fetch_demo(config)
    answers = ask_nodes(how, nodes, ssh, config, dataset=True)
    with exit_on_mistake():
        wrong = mistakes(answers, nodes, config, how=how)
    show(nodes, answers)
    for line in wrong:
        print(f"wrong: {line}")
    if any("error" in told for told in answers):
        return 1
    outcome = start_once(how, nodes, ssh, config, [], program="launch.network_test")
    if outcome.code or outcome.ended != "all-reduce":
        print(f"wrong: no all-reduce over all processes; {outcome.died or 'its errors are above'}")
        return 1
    print("wrong: see above" if wrong else "all good")
    return int(bool(wrong))


def show(nodes: Sequence[Node], answers: Sequence[Mapping[str, Any]]) -> None:
    """The table: a row a node."""
    from rich.console import Console
    from rich.table import Table

    keys = ("host", "commit", "code", "lock", "dataset", "free_gb", "clock_off", "cores")
    table = Table("node", "processes", *keys, "GPUs")
    for node, told in zip(nodes, answers, strict=True):
        if "error" in told:
            table.add_row(node.host, str(node.processes), str(told["error"]))
        else:
            values = [str(told.get(key, "")) for key in keys]
            gpus = f"{len(told['gpus'])} {told['gpus'][0]}" if told["gpus"] else "none"
            table.add_row(node.host, str(node.processes), *values, gpus)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
