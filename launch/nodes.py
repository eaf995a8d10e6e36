"""Which nodes a run has and how many processes on each: from a hostfile, or from SLURM's allocation.

Everything here is a function of its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.slurm import expand_counts
from config.recipe import ConfigError


@dataclass(frozen=True)
class Node:
    """A machine, as it is reached (`host`: a name, an address or user@name), and the processes it is to run."""

    host: str
    processes: int


def read_hostfile(path: Path, processes: int) -> list[Node]:
    """The nodes of a hostfile in DeepSpeed's and MPI's form: a line a node, `host slots=8`; `#` begins a comment.

    processes: of a node that does not say `slots`. Raises ConfigError, one line, for a file that is missing, empty or
    malformed, and for a host that is named twice.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"HOSTFILE={path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    nodes: dict[str, Node] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host, settings = words[0], words[1:]
        slots = [found[1] for word in settings if (found := re.fullmatch(r"slots=([1-9]\d*)", word))]
        if len(settings) > 1 or len(slots) != len(settings):
            raise ConfigError(f"HOSTFILE={path}, line {number}: {line.strip()!r}: expected such as `node1 slots=8`")
        if host in nodes:
            raise ConfigError(f"HOSTFILE={path}, line {number}: {host} is there twice")
        nodes[host] = Node(host, int(slots[0]) if slots else processes)
    if not nodes:
        raise ConfigError(f"HOSTFILE={path}: it names no host")
    return list(nodes.values())


def slurm_nodes(environment: Mapping[str, str], processes: int) -> list[Node] | None:
    """The nodes of the SLURM allocation that we stand in, None outside of one. Raises ConfigError if it cannot be read.

    As many processes each as SLURM was told tasks a node (`--ntasks-per-node`); `processes` where it was told nothing.
    """
    names = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    if not names or "SLURM_JOB_ID" not in environment:
        return None
    hosts = expand_hosts(names)
    if "SLURM_NTASKS_PER_NODE" in environment:
        counts = [_count(environment, "SLURM_NTASKS_PER_NODE")] * len(hosts)
    elif {"SLURM_NTASKS", "SLURM_TASKS_PER_NODE"} <= environment.keys():  # the first says that it was asked for
        counts = expand_counts(environment["SLURM_TASKS_PER_NODE"])
    else:
        counts = [processes] * len(hosts)
    if len(counts) != len(hosts) and "SLURM_STEP_ID" in environment:  # they are of the step that we stand in
        counts = [processes] * len(hosts)
    if len(counts) != len(hosts):
        told = f"SLURM_TASKS_PER_NODE={environment.get('SLURM_TASKS_PER_NODE')}"
        raise ConfigError(f"SLURM_JOB_NODELIST={names} has {len(hosts)} nodes, {told} has {len(counts)}")
    return [Node(host, count) for host, count in zip(hosts, counts, strict=True)]


def expand_hosts(text: str) -> list[str]:
    """SLURM's short form of node names: `gpu[01-03,7],login` -> gpu01, gpu02, gpu03, gpu7, login.

    A name may have several brackets. Raises ConfigError for what is no such list.
    """
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text):
        found = [""]
        for plain, bracket in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", part):
            endings = [plain] if plain else [number for piece in bracket.split(",") for number in _range(piece, text)]
            found = [name + ending for name in found for ending in endings]
        hosts += found
    if not hosts or text.count("[") != text.count("]") or re.search(r",,|^,|,$|\[\]|[\s]", text):
        raise ConfigError(f"{text!r} is no list of nodes as SLURM writes it")
    return hosts


def _range(piece: str, text: str) -> list[str]:
    """`08-11` -> 08, 09, 10, 11; `7` -> 7."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise ConfigError(f"{text!r} is no list of nodes as SLURM writes it")
    first, last = found[1], found[2] or found[1]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _count(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(f"{name}={environment[name]} in the environment is not a number") from None


def first_nodes(nodes: Sequence[Node], wanted: int, where: str) -> list[Node]:
    """The first `wanted` of them, all for 0. Raises ConfigError if there are fewer."""
    if wanted > len(nodes):
        raise ConfigError(f"NODES={wanted}, but {where} has {len(nodes)}")
    return list(nodes[: wanted or None])


def hostfile_text(nodes: Sequence[Node]) -> str:
    """What the deepspeed launcher reads on each node; a name of our own for each, since two may share a machine."""
    return "".join(f"node{index} slots={node.processes}\n" for index, node in enumerate(nodes))
