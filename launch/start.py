"""Starts a run on this machine or on all nodes of a cluster: checks the nodes, starts them and watches them to the end.

    python -m launch.start [--nodes N] [--processes P] [--hostfile FILE] [--dry] RECIPE.yaml [key=value ...]

The nodes are those of the hostfile (reached by ssh), or else of the current SLURM allocation (by srun). Without either,
and without GPUs, --nodes 4 emulates four nodes by four launchers on this machine. Each node runs `launch.node`, which
runs the deepspeed launcher. A node has one process per GPU, or two that share the cores if it has no GPU.

SIGTERM, SIGINT, SIGUSR1 and SIGHUP go to every process of the run: it saves after its step and ends with exit code 0. A
second Ctrl-C kills it. When a process dies on any node, all others are ended and one line says which died and why; with
launch.restarts the run starts again from the last checkpoint. Exit code 0: process 0 reports done or saved.
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

from common.cli import Parser, at_least, exit_on_mistake, note, print_error
from common.machine import launch_environment, visible_devices, visible_gpus
from config.recipe import ROOT, ConfigError, check_given, load_config, paths_of
from launch.deepspeed_runner import LAUNCHERS, check_launcher, run_with_deepspeed
from launch.node import check_devices, launch_command
from launch.nodes import Node, first_nodes, read_hostfile, slurm_nodes
from launch.preflight import ask_nodes, ask_port, find_problems
from launch.remote_commands import address, node_commands, node_program
from launch.restart import keep_batch, no_progress, reachable_nodes, restart_delay
from launch.supervise import Outcome, supervise
from training.distributed import free_port
from training.stopping import StopSignal, stop_signals

CPU_PROCESSES = 2


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    settings = [options.recipe, *options.settings]
    with exit_on_mistake():
        config = load_config(settings)
        if not options.dry:
            check_given(config)
        ssh = shlex.split(options.ssh)
        how, nodes = choose_nodes(options.nodes, options.processes, options.hostfile, dict(os.environ), visible_gpus())
        check_batch(config, nodes)
        if options.launcher:
            check_launcher(options.launcher)
            if config.launch.restarts or config.launch.elastic:
                raise ConfigError(
                    f"LAUNCHER={options.launcher} does not support launch.restarts and launch.elastic; leave one out"
                )
            return run_with_deepspeed(options.launcher, how, nodes, ssh, settings, options.dry)
        if options.dry:
            show_commands(how, nodes, ssh, config, settings)
            return 0
        stop_signal = StopSignal(at_once=True)
        if how == "local":
            check_devices(nodes[0].processes, visible_gpus())
        fetch_demo(config)
        if how != "local":
            check_nodes(how, nodes, ssh, config)
        scan_dataset(config)
        stop_signal.at_once = False  # from here on signals are forwarded to the nodes
    if how == "local" and len(nodes) > 1:
        note(BANNER.format(nodes=len(nodes)))
    return run(how, nodes, ssh, config, settings)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m launch.start", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--nodes",
        type=at_least(0),
        default=0,
        help="number of nodes (default: all of the hostfile or allocation, or 1)",
    )
    parser.add_argument(
        "--processes", type=at_least(0), default=0, help="on each node (default: one per GPU, 2 without GPUs)"
    )
    parser.add_argument("--hostfile", type=Path, help="nodes to reach by ssh, one per line: `node1 slots=8`")
    parser.add_argument("--ssh", default="ssh", help="command that reaches them, e.g. 'ssh -p 2222' (default: ssh)")
    parser.add_argument("--launcher", help=f"start the nodes by DeepSpeed's own runner: {', '.join(LAUNCHERS)}")
    parser.add_argument("--dry", action="store_true", help="only print the commands")
    parser.add_argument("recipe", help="a recipe, e.g. config/demo.yaml")
    parser.add_argument("settings", nargs="*", default=[], help="key=value settings that override the recipe's")
    return parser.parse_intermixed_args(arguments)


BANNER = """\
  ********************************************************************************
  * NO CLUSTER: {nodes} nodes are emulated by as many launchers on this one machine.
  * This is slower than one node. For real nodes: HOSTFILE=hosts, or inside a SLURM job.
  ********************************************************************************"""


def choose_nodes(
    count: int, processes: int, hostfile: Path | None, environment: dict[str, str], gpus: int
) -> tuple[str, list[Node]]:
    """How nodes are reached ("ssh", "srun" or "local"), and the nodes.

    count, processes: as asked for, 0 for the default. gpus: how many this machine has. Raises ConfigError if there are
    fewer nodes than `count`, if a machine with GPUs would have to emulate nodes, and if CUDA_VISIBLE_DEVICES names
    devices that only one node has: those that ssh reaches get it too.
    """
    cores = len(os.sched_getaffinity(0))
    default = processes or gpus or min(CPU_PROCESSES, cores)
    if hostfile is not None:
        nodes = first_nodes(read_hostfile(hostfile, default), count, f"HOSTFILE={hostfile}")
        if len(nodes) > 1 and not all(device.isdecimal() for device in visible_devices(environment) or []):
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']} names devices of one machine, and "
                f"HOSTFILE={hostfile} lists {len(nodes)}: give numbers, which every node can take"
            )
        return "ssh", nodes
    allocated = slurm_nodes(environment, default)
    if allocated is not None and (count > 1 or (not count and len(allocated) > 1)):
        chosen = first_nodes(allocated, count, "the SLURM allocation")
        return "srun", [Node(node.host, processes or node.processes) for node in chosen]
    if count <= 1:
        return "local", [Node("localhost", default)]
    if gpus:
        raise ConfigError(
            f"NODES={count} without a cluster is only emulated, and this machine has GPUs: list the nodes in "
            "HOSTFILE=hosts, or start the run inside a SLURM allocation"
        )
    return "local", [Node("localhost", processes or max(1, cores // count))] * count


def check_batch(config: DictConfig, nodes: Sequence[Node]) -> None:
    """Raises ConfigError if the batch does not split evenly over all processes."""
    total = sum(node.processes for node in nodes)
    if config.run.batch_size % total:
        raise ConfigError(f"run.batch_size={config.run.batch_size} does not split over {total} processes")


def check_nodes(how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig) -> None:
    """Check the nodes without reading the dataset. Raises ConfigError (one line) for the first problem."""
    problems = find_problems(ask_nodes(how, nodes, ssh, config), nodes, config, how=how)
    if problems:
        more = f" (and {len(problems) - 1} more: make cluster-check)" if len(problems) > 1 else ""
        raise ConfigError(problems[0] + more)


def master_address(how: str, nodes: Sequence[Node], ssh: Sequence[str]) -> str:
    """The address at which the other nodes reach process 0."""
    return "127.0.0.1" if how == "local" else address(ssh, nodes[0].host) if how == "ssh" else nodes[0].host


def show_commands(
    how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig, settings: Sequence[str]
) -> None:
    """Print the commands that reach the nodes, and those that each node runs."""
    master, port = master_address(how, nodes, ssh), free_port()
    program = node_program(nodes, master, port, config.run.directory, settings)
    print("\n".join(shlex.join(command) for command in node_commands(how, nodes, program, ssh)))
    counts = [node.processes for node in nodes]
    for rank, node in enumerate(nodes):
        command = launch_command(counts, rank, master, port, [str(ROOT / "train.py"), *settings])
        print(f"\n# {node.host}, {node.processes} processes, under launch.node:\n# {shlex.join(command)}")


def fetch_demo(config: Any) -> None:
    """Fetch the recipe's images if they are a collection of `make data`."""
    for path in map(Path, paths_of(config.data)):
        if path.parent == Path("data"):
            from pipeline.collections.prepare import NAMES, prepare

            if path.name in NAMES:
                prepare(path.name, path)


def scan_dataset(config: Any) -> None:
    """Scan the dataset once, before any process starts; they then read its table."""
    from pipeline.dataset.open import open_splits

    open_splits(config.data, progress=True, say=False)  # train.py says what it takes


def run(how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig, settings: Sequence[str]) -> int:
    """Start the run, and again after failures as launch.restarts and launch.elastic allow; the exit code."""
    share = config.run.batch_size // sum(node.processes for node in nodes) // config.engine.accumulation
    current, parts, attempt, failed_at = list(nodes), config.engine.accumulation, 0, None
    while True:
        outcome = start_once(how, current, ssh, config, [*settings, f"engine.accumulation={parts}"])
        if outcome.died:
            announce(outcome.died)
        if outcome.stacks:
            announce(f"stacks of its processes: {Path(outcome.stacks[0]).parent}")
        if not outcome.code and not outcome.ended:
            announce("all processes ended, but process 0 did not report that the run is done or saved")
            outcome.code = 1
        if outcome.code in (0, 2) or outcome.asked or attempt == config.launch.restarts:
            return outcome.code
        if no_progress(failed_at, outcome.step):
            announce(f"the run failed again without a step beyond {outcome.step}: not started again")
            return outcome.code
        attempt, failed_at = attempt + 1, outcome.step
        pause = restart_delay(attempt, config.launch.backoff)
        announce(f"starting again in {pause:g} seconds, {attempt} of launch.restarts={config.launch.restarts}")
        if signal.sigtimedwait(stop_signals(), pause) is not None:
            return outcome.code
        if config.launch.elastic:
            with exit_on_mistake():
                current, parts = keep_batch(reachable_nodes(how, nodes, ssh), config.run.batch_size, share)
            announce(f"going on with {', '.join(node.host for node in current)}; engine.accumulation={parts}")


def start_once(
    how: str,
    nodes: Sequence[Node],
    ssh: Sequence[str],
    config: DictConfig,
    settings: Sequence[str],
    program: str = "train.py",
) -> Outcome:
    """Start the nodes and watch them until all have ended."""
    total = sum(node.processes for node in nodes)
    port = None if how == "local" else ask_port(how, nodes, ssh)
    port = port or free_port()  # if the first node does not answer, the start itself fails with the reason
    started = node_program(nodes, master_address(how, nodes, ssh), port, config.run.directory, settings, program)
    commands = node_commands(how, nodes, started, ssh)
    environment = launch_environment(total) if how == "local" else dict(os.environ)
    return supervise(commands, [node.host for node in nodes], environment, remote=how != "local")


def announce(text: str) -> None:
    """A line on stderr, below a progress bar that may be there."""
    print_error(text, below_bar=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
