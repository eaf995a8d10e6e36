"""What nodes say of themselves before a run, and what is wrong with it. `launch.start` asks before every run on several
nodes, `launch.cluster_check` for all."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from config.recipe import ROOT
from launch.node_facts import facts
from launch.nodes import Node
from launch.remote_commands import on_each_node
from training.checkpoint.size import checkpoint_gb, disk_gb, memory_gb

PATIENCE = 60.0  # seconds for a node's answer; for the dataset's table an hour
CLOCKS = 5.0  # seconds that a node's clock may be off ours


def ask_nodes(
    how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig, dataset: bool = False
) -> list[dict[str, Any]]:
    """`launch.node_facts` of each node, all asked at once; {"error": a line} of one that does not answer. dataset: its
    table's digest too. To time is added how far (seconds) the clock is off ours, as clock_off."""
    program = ["launch.node_facts", config.data.path, config.run.directory]
    program += ["--dataset", config.data.cache] if dataset else []

    def ask(command: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
        begun = time.time()
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=3600 if dataset else PATIENCE,
            )  # fmt: skip
            told, lines = done.stdout, done.stderr.decode(errors="replace").strip().splitlines()
            error = " ".join(lines[-1].split()) if lines else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired as late:  # of srun's nodes the others may have answered
            told, error = late.stdout or b"", "no answer within a minute"
        except OSError as failed:
            told, error = b"", f"{command[0]}: {failed.strerror}"
        found = [json.loads(line) for line in told.decode(errors="replace").splitlines() if line.startswith("{")]
        for one in found:
            one["clock_off"] = round(off(one["time"], begun, time.time()), 2)
        return found, error

    commands = on_each_node(how, nodes, program, ssh)
    with ThreadPoolExecutor(len(commands)) as pool:
        answers = list(pool.map(ask, commands))
    if how == "srun":  # one command for all, whose answers come in any order
        (found, error), *_ = answers
        return [next((one for one in found if one.get("node") == rank), {"error": error}) for rank in range(len(nodes))]
    return [found[0] if found else {"error": error} for found, error in answers]


def off(there: float, begun: float, ended: float) -> float:
    """How far a clock that showed `there` some time between two readings of ours is off at least, in seconds."""
    return there - ended if there > ended else there - begun if there < begun else 0.0


def mistakes(
    answers: Sequence[Mapping[str, Any]],
    nodes: Sequence[Node],
    config: DictConfig,
    ours: Mapping[str, Any] | None = None,
    how: str = "ssh",
) -> list[str]:
    """What is wrong with the nodes, a line each with its mend; compared with `ours` (default: this machine's facts).
    config: of the run, for the disk that it will want. how: the nodes are reached, as for `on_each_node`. Raises
    ValueError for a network that cannot be built."""
    ours, network = ours or facts(".", Path(".")), checkpoint_gb(config)
    wrong = []
    for node, told in zip(nodes, answers, strict=True):

        def say(what: str, mend: str, host: str = node.host) -> None:
            wrong.append(f"{host}: {what}; {mend}")

        if "error" in told:
            say(
                f"does not answer as it should ({told['error']})",
                f"does `srun -w {node.host} true` work?"
                if how == "srun"
                else f"does `ssh {node.host} true` work, without a password?",
            )
            continue
        if told["code"] != ours["code"]:
            say(f"other code (commit {told['commit'] or '?'}, here {ours['commit'] or '?'})", "make sync HOSTFILE=...")
        if not told["lock"]:
            say(".venv is not set up", "make setup there, or make sync HOSTFILE=...")
        elif told["lock"] != ours["lock"]:
            say(".venv is of another lock file", "make setup there, or make sync HOSTFILE=...")
        if not told["data"]:
            say("data.path is not there", "a shared file system, or make sync HOSTFILE=... DATA=...")
        if str(told.get("dataset", "")).startswith("unreadable"):
            say(f"dataset {told['dataset']}", "make sync HOSTFILE=... DATA=...")
        one = network + memory_gb(config, told.get("images", 0))
        wanted = disk_gb(config, told["checkpoints"], one)
        if told["free_gb"] < wanted:
            say(
                f"{told['free_gb']} GB free at run.directory, and checkpoints of {one:.2g} GB will want {wanted:.2g}",
                "make room, or lower checkpoint.keep",
            )
        if abs(told["clock_off"]) > CLOCKS:
            say(f"its clock is {told['clock_off']:g} s off", "set it, by NTP")
        if told["gpus"] and len(told["gpus"]) < node.processes:
            say(f"{len(told['gpus'])} GPUs for {node.processes} processes", "fewer slots in the hostfile, or GPUS=")
    good = [(node, told) for node, told in zip(nodes, answers, strict=True) if "error" not in told]
    for key, what, mend in (
        ("gpus", "other GPUs", "nodes of one kind: the slowest sets the pace"),
        ("dataset", "another dataset", "make sync HOSTFILE=... DATA=..., or delete data.cache there"),
    ):
        for node, told in good[1:]:
            if key in told and set(told[key]) != set(good[0][1][key]):
                wrong.append(f"{node.host}: {what} than {good[0][0].host} ({told[key] or 'none'}); {mend}")
    return wrong
