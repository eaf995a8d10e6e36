"""The nodes of a run and the number of processes on each, read from a hostfile or from SLURM's allocation.

All functions here are pure, but for reading the hostfile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.slurm import MOST_NODES, expand_counts
from config.recipe import ConfigError


@dataclass(frozen=True)
class Node:
    """A machine. host: what ssh connects to (name, address or user@name). processes: how many it starts."""

    host: str
    processes: int


def read_hostfile(path: Path, processes: int) -> list[Node]:
    """The nodes of a hostfile in the form that DeepSpeed and MPI use: one line per node, `host slots=8`; `#` starts a
    comment.

    processes: for nodes without `slots`. Raises ConfigError (one line) if the file is missing, empty or malformed, or
    names a host twice.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"HOSTFILE={path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    nodes: dict[str, Node] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host, settings = words[0], words[1:]
        slots = [match[1] for word in settings if (match := re.fullmatch(r"slots=([1-9][0-9]{0,5})", word))]
        if len(settings) > 1 or len(slots) != len(settings):
            raise ConfigError(f"HOSTFILE={path}, line {number}: {line.strip()!r}: expected a line like `node1 slots=8`")
        if host in nodes:
            raise ConfigError(f"HOSTFILE={path}, line {number}: {host} is listed twice")
        nodes[host] = Node(host, int(slots[0]) if slots else processes)
    if not nodes:
        raise ConfigError(f"HOSTFILE={path}: the file lists no host")
    return list(nodes.values())


def slurm_nodes(environment: Mapping[str, str], processes: int) -> list[Node] | None:
    """The nodes of the SLURM allocation that this process runs in; None outside of an allocation.

    Each node gets as many processes as the job has tasks per node (`--ntasks-per-node`), or `processes` if the job does
    not set them. Raises ConfigError if the environment is malformed or contradicts itself.
    """
    names = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    if not names or "SLURM_JOB_ID" not in environment:
        return None
    hosts = expand_hosts(names)
    if "SLURM_NTASKS_PER_NODE" in environment:
        counts = [_count(environment, "SLURM_NTASKS_PER_NODE")] * len(hosts)
    elif {"SLURM_NTASKS", "SLURM_TASKS_PER_NODE"} <= environment.keys():  # SLURM_NTASKS: the job sets it
        counts = expand_counts(environment["SLURM_TASKS_PER_NODE"])
    else:
        counts = [processes] * len(hosts)
    if len(counts) != len(hosts) and "SLURM_STEP_ID" in environment:  # the counts belong to the current step
        counts = [processes] * len(hosts)
    if len(counts) != len(hosts):
        tasks = f"SLURM_TASKS_PER_NODE={environment.get('SLURM_TASKS_PER_NODE')}"
        raise ConfigError(f"SLURM_JOB_NODELIST={names} has {len(hosts)} nodes, {tasks} has {len(counts)}")
    if min(counts) < 1:
        raise ConfigError(
            f"SLURM's environment gives {hosts[counts.index(min(counts))]} {min(counts)} tasks; expected at least 1"
        )
    return [Node(host, count) for host, count in zip(hosts, counts, strict=True)]


def expand_hosts(text: str) -> list[str]:
    """Expands SLURM's short form of node names: `gpu[01-03,7],login` -> gpu01, gpu02, gpu03, gpu7, login.

    A name may have several brackets. Raises ConfigError if the text is malformed.
    """
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text):
        names = [""]
        for plain, bracket in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", part):
            endings = [plain] if plain else [number for piece in bracket.split(",") for number in _range(piece, text)]
            if len(names) * len(endings) > MOST_NODES:
                raise ConfigError(f"{text[:80]!r} is not a SLURM node list: more than {MOST_NODES} nodes")
            names = [name + ending for name in names for ending in endings]
        hosts += names
    if not hosts or text.count("[") != text.count("]") or re.search(r",,|^,|,$|\[\]|[\s]", text):
        raise ConfigError(f"{text[:80]!r} is not a SLURM node list")
    return hosts


def _range(piece: str, text: str) -> list[str]:
    """`08-11` -> 08, 09, 10, 11; `7` -> 7."""
    match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", piece)
    if match is None or not 0 <= int(match[2] or match[1]) - int(match[1]) < MOST_NODES:
        raise ConfigError(f"{text[:80]!r} is not a SLURM node list")
    first, last = match[1], match[2] or match[1]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _count(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(f"{name}={environment[name]} in the environment is not a number") from None


def first_nodes(nodes: Sequence[Node], count: int, source: str) -> list[Node]:
    """The first `count` of `nodes`; 0 means all. source: what lists them, for the message. Raises ConfigError if there
    are fewer."""
    if count > len(nodes):
        raise ConfigError(f"NODES={count}, but {source} has {len(nodes)}")
    return list(nodes[: count or None])
