"""Start a run on this machine, or on all nodes of a cluster: check everything once, then start, watch and end them all.

    python -m launch.start [--nodes N] [--processes P] [--hostfile FILE] [--dry] RECIPE.yaml [key=value ...]

Nodes are those of the hostfile (reached by ssh), else of the SLURM allocation that we stand in (by srun). Without
either, and without GPUs, --nodes 4 makes believe: four launchers on this machine. On every node the same runs:
`launch.node`, with the deepspeed launcher below it. Processes: one a GPU; on a machine without GPUs two, with the cores
shared out.

SIGTERM, SIGINT, SIGUSR1 and SIGHUP reach every process of the run at once: it saves at the end of its step and ends
with exit code 0. A second Ctrl-C kills it. When a process dies, wherever, all others are ended and one line says which
and why.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.recipe import ROOT, ConfigError, load_config
from launch.cluster import Cluster, free_port
from launch.machine import launch_environment, visible_gpus
from launch.nodes import Node, first_nodes, read_hostfile, slurm_nodes
from launch.report import mistakes_end_the_run
from launch.stopping import StopSignal, stop_signals

CPU_PROCESSES = 2
GRACE = 5.0  # seconds that the other nodes have, beyond those that each gives its own processes, once one has failed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.start", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--nodes", type=int, default=0, help="how many (default: all of the hostfile or allocation; else 1)"
    )
    parser.add_argument("--processes", type=int, default=0, help="on each node (default: one a GPU, 2 on a CPU)")
    parser.add_argument("--hostfile", type=Path, help="nodes to reach by ssh, a line each: `node1 slots=8`")
    parser.add_argument("--ssh", default="ssh", help="how to reach them, with options: 'ssh -p 2222' (default: ssh)")
    parser.add_argument("--dry", action="store_true", help="print what would be run, and end")
    parser.add_argument("recipe", help="a recipe, e.g. config/demo.yaml")
    parser.add_argument("settings", nargs="*", help="key=value settings that override the recipe's")
    options = parser.parse_args(arguments)
    settings = [options.recipe, *options.settings]
    with mistakes_end_the_run(Cluster()):
        config = load_config(settings)
        for name in ("nodes", "processes"):
            if getattr(options, name) < 0:
                raise ConfigError(f"--{name}={getattr(options, name)}: expected 1 or more, or leave it out")
        gpus = visible_gpus()
        how, nodes = choose_nodes(options.nodes, options.processes, options.hostfile, dict(os.environ), gpus)
        total = sum(node.processes for node in nodes)
        if config.run.batch_size % total:
            raise ConfigError(f"run.batch_size={config.run.batch_size} does not split over {total} processes")
        ssh = shlex.split(options.ssh)
        master = "127.0.0.1" if how == "local" else address(ssh, nodes[0].host) if how == "ssh" else nodes[0].host
        commands = node_commands(how, nodes, master, free_port(), settings, ssh)
        if options.dry:
            print("\n".join(shlex.join(command) for command in commands))
            return 0
        stop_signal = StopSignal(at_once=True)
        prepare_data(config)
        stop_signal.at_once = False  # from here on they are passed on
    if how == "local" and len(nodes) > 1:
        print(BANNER.format(nodes=len(nodes)), file=sys.stderr, flush=True)
    return run(commands, launch_environment(total) if how == "local" else dict(os.environ))


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
        return "srun", first_nodes(allocated, wanted, "the SLURM allocation")
    if wanted <= 1:
        return "local", [Node("localhost", each)]
    if gpus:
        raise ConfigError(
            f"NODES={wanted} without a cluster is only emulated, and this machine has GPUs: name the nodes in "
            "HOSTFILE=hosts, or start it inside a SLURM allocation"
        )
    return "local", [Node("localhost", processes or max(1, cores // wanted))] * wanted


def address(ssh: Sequence[str], host: str) -> str:
    """What ssh connects to for a name of the hostfile, by its own configuration. Raises ConfigError without an ssh."""
    try:
        told = subprocess.run([*ssh, "-G", host], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{shlex.join(ssh)} -G {host} failed ({type(error).__name__}); is ssh installed?") from None
    return next(line.split()[1] for line in told.splitlines() if line.startswith("hostname "))


def node_commands(
    how: str, nodes: Sequence[Node], master: str, port: int, settings: Sequence[str], ssh: Sequence[str] = ("ssh",)
) -> list[list[str]]:
    """The commands that start `launch.node` on every node: one a node, for srun one in all."""
    counts = ",".join(str(node.processes) for node in nodes)
    python = str(ROOT / ".venv" / "bin" / "python") if how != "local" else sys.executable

    def on_node(rank: str) -> list[str]:
        place = ["--rank", rank, "--processes", counts, "--master", master, "--port", str(port)]
        return [python, "-m", "launch.node", *place, *settings]

    if how == "local":
        return [on_node(str(rank)) for rank in range(len(nodes))]
    if how == "ssh":
        there = f"cd {shlex.quote(str(ROOT))} && exec env "
        kept = [f"{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
        return [
            [*ssh, "-o", "BatchMode=yes", node.host, there + shlex.join([*kept, *on_node(str(rank))])]
            for rank, node in enumerate(nodes)
        ]
    names = ",".join(node.host for node in nodes)
    spread = ["--nodes", str(len(nodes)), "--ntasks", str(len(nodes)), "--ntasks-per-node", "1", "--nodelist", names]
    return [["srun", *spread, "--chdir", str(ROOT), "--kill-on-bad-exit=1", *on_node("slurm")]]


PASSED_ON = ("OMP_NUM_THREADS", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TORCH_DISTRIBUTED_DEBUG")


def prepare_data(config: Any) -> None:
    """Fetch the demo's data if the recipe asks for it, and scan the dataset once, before any process starts."""
    from pipeline.dataset import open_splits
    from pipeline.fashion_mnist import prepare

    if Path(config.data.path) == Path("data/fashion-mnist"):
        prepare(Path(config.data.path))
    open_splits(config.data, progress=True)


def run(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> int:
    """Run every node's command until all have ended; returns 0, or the first exit code that is not.

    Each node listens on its standard input: signals are passed on by it, and its end, when we are gone, ends the node.
    """
    signals = stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, [*signals, signal.SIGCHLD])
    nodes = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )
        for command in commands
    ]  # fmt: skip
    code, kill_at, stopped = 0, float("inf"), False
    while any(node.poll() is None for node in nodes):
        received = signal.sigtimedwait([*signals, signal.SIGCHLD], min(5.0, max(0.1, kill_at - time.monotonic())))
        if received is not None and received.si_signo in signals:
            again = stopped and received.si_signo == signal.SIGINT
            tell(nodes, "SIGKILL" if again else "SIGUSR1" if received.si_signo == signal.SIGUSR1 else "SIGTERM")
            stopped = stopped or received.si_signo == signal.SIGINT
        for node in nodes:
            if node.poll() and not code:
                code = node.returncode if node.returncode > 0 else 1
                kill_at = time.monotonic() + GRACE
        if time.monotonic() > kill_at:
            tell(nodes, "SIGKILL")
            kill_at = float("inf")
    died = [report for node in nodes for report in died_on(node)]
    if died:  # one that was killed without a word first: the others' errors are of its going
        first = min(died, key=lambda report: report["time"])
        who = f"rank {first['rank']} on {first['host']} died" if first["rank"] >= 0 else first["host"]
        print(f"\nswave: {who}: {first['error']}", file=sys.stderr, flush=True)
    return code


def tell(nodes: Sequence[subprocess.Popen[str]], order: str) -> None:
    """Send an order to every node that lives."""
    for node in nodes:
        assert node.stdin is not None
        if node.poll() is None:
            try:
                node.stdin.write(order + "\n")
                node.stdin.flush()
            except BrokenPipeError:  # it has just ended
                continue


def died_on(node: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What an ended node reports of processes that died."""
    assert node.stdout is not None
    reports = []
    for line in node.stdout.read().splitlines():
        try:
            reports += json.loads(line)["died"]
        except (ValueError, LookupError, TypeError):  # something else that was printed
            continue
    return reports


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
