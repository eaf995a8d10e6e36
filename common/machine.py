"""This machine's GPUs, network interfaces, and the environment of its training processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from itertools import takewhile


def launch_environment(processes: int) -> dict[str, str]:
    """The environment of `processes` here: cores shared out evenly, DeepSpeed on the CPU where there is no GPU.
    Variables that are already set stay as they are."""
    cores = len(os.sched_getaffinity(0))
    environment = {"OMP_NUM_THREADS": str(max(1, cores // processes)), "DS_LOG_LEVEL": "warning"}
    if not visible_gpus():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment | dict(os.environ)


def gpu_names() -> list[str]:
    """Names of this machine's GPUs, as nvidia-smi has them."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listing.stdout.splitlines() if line.strip()]


def visible_gpus() -> int:
    """CUDA GPUs that processes started from here would see, without importing torch."""
    return len(visible_gpu_names(gpu_names(), os.environ))


def visible_gpu_names(names: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The names of the GPUs that CUDA_VISIBLE_DEVICES lists. names: of all GPUs here. A UUID or a MIG name counts as a
    GPU of the first kind: a machine rarely has two."""
    devices = visible_devices(environment)
    if devices is None or not names:
        return list(names)
    known = takewhile(lambda device: not device.isdecimal() or int(device) < len(names), devices)
    return [names[int(device) if device.isdecimal() else 0] for device in known]


def visible_devices(environment: Mapping[str, str]) -> list[str] | None:
    """The devices that CUDA_VISIBLE_DEVICES lists: indices, UUIDs or MIG names. None where it is not set.

    As in CUDA, the list ends at the first entry that names no device, such as -1 or SLURM's NoDevFiles.
    """
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return list(takewhile(re.compile(r"[0-9]+|(GPU|MIG)-.+").fullmatch, names))


def devices_of_processes(processes: int, environment: Mapping[str, str]) -> list[str]:
    """A device for each process of this machine: the first ones that the user lets it see, or the first ones of the
    machine where the user has said nothing. -1, no device, for each process that is left: never one that is not
    listed."""
    devices = visible_devices(environment)
    if devices is None:
        return [str(index) for index in range(processes)]
    return [*devices[:processes], *["-1"] * (processes - len(devices))]


def environment_of_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a rank that may see the devices of all ranks of its machine. Of MIG devices it sees its own
    alone: CUDA shows a process the first one of its list only."""
    devices = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if not any(device.startswith("MIG-") for device in devices):
        return dict(environment)
    return {**environment, "CUDA_VISIBLE_DEVICES": devices[int(environment["LOCAL_RANK"])]}


def interface_to(address: str) -> str | None:
    """The network interface by which this machine reaches `address` (a name or IPv4 address; on its own machine the one
    that has it); None if it is unknown."""
    import psutil

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: it only asks for the route
            probe.connect((address, 9))
            own = probe.getsockname()[0]
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    return interface_of(own, {name: [entry.address for entry in entries] for name, entries in interfaces})


def interface_of(address: str, interfaces: Mapping[str, Sequence[str]]) -> str | None:
    """The name of the interface that has this address, None if there is none."""
    return next((name for name, addresses in interfaces.items() if address in addresses), None)
