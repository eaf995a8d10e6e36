"""Start a run on this machine, or on all nodes of a cluster: check everything once, then start, watch and end them all.

    python -m launch.start [--nodes N] [--processes P] [--hostfile FILE] [--dry] RECIPE.yaml [key=value ...]

Nodes are those of the hostfile (reached by ssh), else of the SLURM allocation that we stand in (by srun). Without
either, and without GPUs, --nodes 4 makes believe: four launchers on this machine. On every node the same runs:
`launch.node`, with the deepspeed launcher below it. Processes: one a GPU; on a machine without GPUs two, with the cores
shared out.

SIGTERM, SIGINT, SIGUSR1 and SIGHUP reach every process of the run at once: it saves at the end of its step and ends
with exit code 0. A second Ctrl-C kills it. When a process dies, wherever, all others are ended and one line says which
and why; launch.restarts starts it again from the last checkpoint. Exit code 0: process 0 has said that the run is done
or saved.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from common.cli import Parser, exit_on_mistake, print_error
from common.machine import launch_environment, visible_gpus
from config.recipe import ROOT, ConfigError, load_config
from launch.deepspeed_runner import LAUNCHERS, hand_over
from launch.node import launch_command
from launch.nodes import Node, first_nodes, hostfile_text, read_hostfile, slurm_nodes
from launch.preflight import ask_nodes, mistakes
from launch.remote_commands import address, node_program, on_each_node
from launch.restart import answering, fewer, same_failure, wait_before
from launch.supervise import Outcome, conduct
from training.distributed import free_port
from training.stopping import StopSignal, stop_signals

CPU_PROCESSES = 2


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    settings = [options.recipe, *options.settings]
    with exit_on_mistake():
        config = load_config(settings)
        for name in ("nodes", "processes"):
            if getattr(options, name) < 0:
                raise ConfigError(f"--{name}={getattr(options, name)}: expected 1 or more, or leave it out")
        ssh = shlex.split(options.ssh)
        how, nodes = choose_nodes(options.nodes, options.processes, options.hostfile, dict(os.environ), visible_gpus())
        check_batch(config, nodes)
        if options.launcher and (config.launch.restarts or config.launch.elastic):
            raise ConfigError(f"LAUNCHER={options.launcher} knows no launch.restarts and launch.elastic; leave one out")
        if options.launcher:
            return hand_over(options.launcher, how, nodes, ssh, settings, options.dry)
        if options.dry:
            show_commands(how, nodes, ssh, config, settings)
            return 0
        stop_signal = StopSignal(at_once=True)
        fetch_demo(config)
        if how != "local":
            check_nodes(how, nodes, ssh, config)
        scan(config)
        stop_signal.at_once = False  # from here on they are passed on
    if how == "local" and len(nodes) > 1:
        print(BANNER.format(nodes=len(nodes)), file=sys.stderr, flush=True)
    return run(how, nodes, ssh, config, settings)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m launch.start", __doc__.splitlines()[0])
    parser.add_argument(
        "--nodes", type=int, default=0, help="how many (default: all of the hostfile or allocation; else 1)"
    )
    parser.add_argument("--processes", type=int, default=0, help="on each node (default: one a GPU, 2 on a CPU)")
    parser.add_argument("--hostfile", type=Path, help="nodes to reach by ssh, a line each: `node1 slots=8`")
    parser.add_argument("--ssh", default="ssh", help="how to reach them, with options: 'ssh -p 2222' (default: ssh)")
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, help="hand over to DeepSpeed's own runner of this kind (default: ours)"
    )
    parser.add_argument("--dry", action="store_true", help="print what would be run, and end")
    parser.add_argument("recipe", help="a recipe, e.g. config/demo.yaml")
    parser.add_argument("settings", nargs="*", help="key=value settings that override the recipe's")
    return parser.parse_args(arguments)


BANNER = """\
  ********************************************************************************
  * NO CLUSTER: {nodes} nodes are emulated, by as many launchers on this one machine.
  * It is slower than one. For real ones: HOSTFILE=hosts, or inside a SLURM job.
  ********************************************************************************"""


def choose_nodes(
    wanted: int, processes: int, hostfile: Path | None, environment: dict[str, str], gpus: int
) -> tuple[str, list[Node]]:
    """How nodes are reached ("ssh", "srun" or "local") and which they are. Raises ConfigError where there are too few,
    and where nodes would be emulated on a machine with GPUs."""
    cores = len(os.sched_getaffinity(0))
    each = processes or gpus or min(CPU_PROCESSES, cores)
    if hostfile is not None:
        return "ssh", first_nodes(read_hostfile(hostfile, each), wanted, f"HOSTFILE={hostfile}")
    allocated = slurm_nodes(environment, each)
    if allocated is not None and (wanted > 1 or (not wanted and len(allocated) > 1)):
        chosen = first_nodes(allocated, wanted, "the SLURM allocation")
        return "srun", [Node(node.host, processes or node.processes) for node in chosen]
    if wanted <= 1:
        return "local", [Node("localhost", each)]
    if gpus:
        raise ConfigError(
            f"NODES={wanted} without a cluster is only emulated, and this machine has GPUs: name the nodes in "
            "HOSTFILE=hosts, or start it inside a SLURM allocation"
        )
    return "local", [Node("localhost", processes or max(1, cores // wanted))] * wanted


def check_batch(config: DictConfig, nodes: Sequence[Node]) -> None:
    """Raises ConfigError where the batch does not split over the nodes' processes."""
    total = sum(node.processes for node in nodes)
    if config.run.batch_size % total:
        raise ConfigError(f"run.batch_size={config.run.batch_size} does not split over {total} processes")


def check_nodes(how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig) -> None:
    """The quick half of `launch.preflight`. Raises ConfigError, one line, for the first thing that is wrong."""
    wrong = mistakes(ask_nodes(how, nodes, ssh, config), nodes, config, how=how)
    if wrong:
        more = f" (and {len(wrong) - 1} more: make cluster-check)" if len(wrong) > 1 else ""
        raise ConfigError(wrong[0] + more)


def master_of(how: str, nodes: Sequence[Node], ssh: Sequence[str]) -> str:
    """The address at which the others find process 0."""
    return "127.0.0.1" if how == "local" else address(ssh, nodes[0].host) if how == "ssh" else nodes[0].host


def show_commands(
    how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig, settings: Sequence[str]
) -> None:
    """Print what would be run: the commands that reach the nodes, and what each node runs then."""
    master, port = master_of(how, nodes, ssh), free_port()
    program = node_program(nodes, master, port, config.run.directory, settings)
    print("\n".join(shlex.join(command) for command in on_each_node(how, nodes, program, ssh)))
    for rank, node in enumerate(nodes):
        command = launch_command(Path("HOSTS"), rank, master, port, [str(ROOT / "train.py"), *settings])
        print(f"\n# {node.host}, {node.processes} processes, under launch.node:\n# {shlex.join(command)}")
    print("\n# HOSTS: made by launch.node, it holds")
    print("\n".join(f"# {line}" for line in hostfile_text(nodes).splitlines()))


def fetch_demo(config: Any) -> None:
    """Fetch the demo's data if the recipe asks for it."""
    from pipeline.fashion_mnist import prepare

    if Path(config.data.path) == Path("data/fashion-mnist"):
        prepare(Path(config.data.path))


def scan(config: Any) -> None:
    """Scan the dataset once, before any process starts."""
    from pipeline.dataset.open import open_splits

    open_splits(config.data, progress=True)


def run(how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig, settings: Sequence[str]) -> int:
    """The run, started again after failures as `launch.restarts` and `launch.elastic` say; its exit code."""
    share = config.run.batch_size // sum(node.processes for node in nodes) // config.engine.accumulation
    here, parts, attempt, failed_at = list(nodes), config.engine.accumulation, 0, None
    while True:
        outcome = start_once(how, here, ssh, config, [*settings, f"engine.accumulation={parts}"])
        if outcome.died:
            say(outcome.died)
        if outcome.stacks:
            say(f"where its processes were then: {Path(outcome.stacks[0]).parent}")
        if not outcome.code and not outcome.ended:
            say("all processes have ended, but none has said that the run is done or saved")
            outcome.code = 1
        if outcome.code in (0, 2) or outcome.asked or attempt == config.launch.restarts:
            return outcome.code
        if same_failure(failed_at, outcome.step):
            say(f"it failed after step {outcome.step}, no further than the time before: not started again")
            return outcome.code
        attempt, failed_at = attempt + 1, outcome.step
        pause = wait_before(attempt, config.launch.backoff)
        say(f"starting again in {pause:g} seconds, {attempt} of launch.restarts={config.launch.restarts}")
        if signal.sigtimedwait(stop_signals(), pause) is not None:
            return outcome.code
        if config.launch.elastic:
            with exit_on_mistake():
                here, parts = fewer(answering(how, nodes, ssh), config.run.batch_size, share)
            say(f"going on with {', '.join(node.host for node in here)}; engine.accumulation={parts}")


def start_once(
    how: str,
    nodes: Sequence[Node],
    ssh: Sequence[str],
    config: DictConfig,
    settings: Sequence[str],
    program: str = "train.py",
) -> Outcome:
    """One start, to its end."""
    total = sum(node.processes for node in nodes)
    port = free_port() if how == "local" else port_of(how, nodes, ssh, config)
    started = node_program(nodes, master_of(how, nodes, ssh), port, config.run.directory, settings, program)
    commands = on_each_node(how, nodes, started, ssh)
    environment = launch_environment(total) if how == "local" else dict(os.environ)
    return conduct(commands, [node.host for node in nodes], environment, far=how != "local")


def port_of(how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig) -> int:
    """A port that is free on the first node; one that is free here if it does not answer (the start will say so)."""
    facts = ask_nodes(how, nodes[:1], ssh, config)[0]
    return int(facts["port"]) if "port" in facts else free_port()


def say(text: str) -> None:
    print_error(text, below_bar=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
