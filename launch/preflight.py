"""Checks nodes before a run: asks each for its facts, and compares them with this machine's.

`launch.start` does this before every run on several nodes, `launch.cluster_check` with the dataset as well.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from common.progress import counted, progress_bar
from config.recipe import ROOT, paths_of
from launch.node_facts import gather_facts
from launch.nodes import Node
from launch.remote_commands import node_commands
from training.disk_space import checkpoint_gb, disk_gb, memory_gb

ANSWER_TIMEOUT = 60.0  # seconds
DATASET_TIMEOUT = 3600.0  # seconds; a node may have to scan the dataset first
CLOCK_TOLERANCE = 5.0  # seconds by which a node's clock may differ from this machine's


def ask_nodes(
    how: str, nodes: Sequence[Node], ssh: Sequence[str], config: DictConfig, dataset: bool = False
) -> list[dict[str, Any]]:
    """The facts of each node (`launch.node_facts`), all asked at once, or {"error": line} for a node without an answer.

    dataset: also the digest of its table. `clock_off` is added: seconds by which the node's clock differs.
    """
    path, *more = paths_of(config.data)
    program = ["launch.node_facts", path, config.run.directory, *(word for one in more for word in ("--and", one))]
    if dataset:
        chosen = {"--dataset": config.data.cache, "--image": config.data.image, "--label": config.data.label}
        chosen |= {"--check": config.data.check, "--channels": config.data.channels, "--layout": config.data.layout}
        chosen["--bands"] = config.data.get("bands")
        chosen["--cache-bytes"] = config.data.cache_bytes
        program += [word for name, value in chosen.items() if value is not None for word in (name, str(value))]
    return _answers(how, nodes, ssh, program, DATASET_TIMEOUT if dataset else ANSWER_TIMEOUT)


def ask_port(how: str, nodes: Sequence[Node], ssh: Sequence[str]) -> int | None:
    """A TCP port that is free on the first node; None without an answer."""
    (answer,) = _answers(how, nodes[:1], ssh, ["launch.node_facts", "--port"], ANSWER_TIMEOUT)
    return answer.get("port")


def _answers(
    how: str, nodes: Sequence[Node], ssh: Sequence[str], program: Sequence[str], timeout: float
) -> list[dict[str, Any]]:
    """What `program` prints on each node, or {"error": line}."""
    commands = node_commands(how, nodes, program, ssh)
    with (
        progress_bar(len(commands), f"waiting {timeout:g} s at most for answers", "command") as bar,
        ThreadPoolExecutor(len(commands)) as pool,
    ):
        asked = [pool.submit(_ask, command, timeout) for command in commands]
        answers = [done.result() for done in counted(asked, bar, lambda _: 1)]
    if how == "srun":  # one command for all nodes, whose answers come in any order
        (facts, error), *_ = answers
        return [next((one for one in facts if one.get("node") == rank), {"error": error}) for rank in range(len(nodes))]
    return [facts[0] if facts else {"error": error} for facts, error in answers]


def _ask(command: Sequence[str], timeout: float) -> tuple[list[dict[str, Any]], str]:
    """Run a command that prints facts as lines of JSON; the facts, and the reason if there are none."""
    begun = time.time()
    try:
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        output, lines = done.stdout, done.stderr.decode(errors="replace").strip().splitlines()
        error = " ".join(lines[-1].split()) if lines else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:  # srun: some nodes may have answered
        output, error = late.stdout or b"", f"no answer within {timeout:g} seconds"
    except OSError as failed:
        output, error = b"", f"{command[0]}: {failed.strerror}"
    facts = [json.loads(line) for line in output.decode(errors="replace").splitlines() if line.startswith("{")]
    for one in facts:
        one["clock_off"] = round(clock_offset(one["time"], begun, time.time()), 2)
    return facts, error


def clock_offset(remote: float, begun: float, ended: float) -> float:
    """The least offset in seconds of a clock that showed `remote` at some time between `begun` and `ended` here."""
    return remote - ended if remote > ended else remote - begun if remote < begun else 0.0


def find_problems(
    answers: Sequence[Mapping[str, Any]],
    nodes: Sequence[Node],
    config: DictConfig,
    local: Mapping[str, Any] | None = None,
    how: str = "ssh",
) -> list[str]:
    """What is wrong with the nodes: one line for each problem, with its remedy.

    local: facts that code and lock file must equal; default: this machine's. config: the run's, for the disk space that
    checkpoints need. how: how nodes are reached, as in `node_commands`. Raises ValueError if the network cannot be
    built.
    """
    local, network = local or gather_facts(["."], Path(".")), checkpoint_gb(config)
    problems = []
    for node, facts in zip(nodes, answers, strict=True):
        if "error" in facts:
            test = f"srun -w {node.host} true" if how == "srun" else f"ssh {node.host} true"
            password = "" if how == "srun" else ", without a password"
            problems.append(f"{node.host}: no proper answer ({facts['error']}); does `{test}` work{password}?")
            continue
        own = [
            *_code_problems(facts, local),
            *_space_problems(facts, config, network),
            *_machine_problems(facts, node),
        ]
        problems += [f"{node.host}: {problem}" for problem in own]
    return problems + _differences(answers, nodes)


def _code_problems(facts: Mapping[str, Any], local: Mapping[str, Any]) -> Iterator[str]:
    if facts["code"] != local["code"]:
        yield (
            f"its code differs (commit {facts['commit'] or '?'}, here {local['commit'] or '?'}); make sync HOSTFILE=..."
        )
    if not facts["lock"]:
        yield ".venv is not set up; make setup there, or make sync HOSTFILE=..."
    elif facts["lock"] != local["lock"]:
        yield ".venv was made from another lock file; make setup there, or make sync HOSTFILE=..."


def _space_problems(facts: Mapping[str, Any], config: DictConfig, network: float) -> Iterator[str]:
    """Missing data, and too little room for checkpoints. network: GB of a checkpoint without a memory of images."""
    if not facts["data"]:
        yield "data.path does not exist; use a shared file system, or make sync HOSTFILE=... DATA=..."
    if str(facts.get("dataset", "")).startswith("unreadable"):
        yield f"dataset {facts['dataset']}; make sync HOSTFILE=... DATA=..."
    checkpoint = network + memory_gb(config, facts.get("images", 0))
    needed = disk_gb(config, facts["checkpoints"], checkpoint)
    if facts["free_gb"] < needed:
        yield (
            f"{facts['free_gb']} GB free at run.directory, but checkpoints of {checkpoint:.2g} GB need {needed:.2g}; "
            "make room, or lower checkpoint.keep"
        )


def _machine_problems(facts: Mapping[str, Any], node: Node) -> Iterator[str]:
    if abs(facts["clock_off"]) > CLOCK_TOLERANCE:
        yield f"its clock is {facts['clock_off']:g} s off; set it, e.g. by NTP"
    if facts["gpus"] and len(facts["gpus"]) < node.processes:
        yield f"{len(facts['gpus'])} GPUs for {node.processes} processes; give fewer slots in the hostfile, or GPUS="


def _differences(answers: Sequence[Mapping[str, Any]], nodes: Sequence[Node]) -> list[str]:
    """Lines about nodes whose kinds of GPUs or whose dataset differ from the first node's."""
    good = [(node, facts) for node, facts in zip(nodes, answers, strict=True) if "error" not in facts]
    problems = []
    for node, facts in good[1:]:
        first, reference = good[0]
        if set(facts["gpus"]) != set(reference["gpus"]):  # kinds of GPUs; their numbers may differ
            gpus = ", ".join(sorted(set(facts["gpus"]))) or "none"
            problems.append(
                f"{node.host}: its GPUs ({gpus}) differ from those of {first.host}; take nodes of one kind: the "
                "slowest sets the pace"
            )
        if "dataset" in facts and facts["dataset"] != reference["dataset"]:
            problems.append(
                f"{node.host}: its dataset ({facts['dataset']}) differs from that of {first.host}; make sync "
                "HOSTFILE=... DATA=..., or delete data.cache there"
            )
    return problems
