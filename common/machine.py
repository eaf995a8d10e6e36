"""This machine's GPUs, network interfaces, and the environment of its training processes."""

from __future__ import annotations

import os
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
    """CUDA GPUs that a process started from here would see, without importing torch."""
    names, devices = gpu_names(), visible_devices(os.environ)
    return len(names) if devices is None else min(len(names), len(devices))


def visible_devices(environment: Mapping[str, str]) -> list[str] | None:
    """The devices that CUDA_VISIBLE_DEVICES lists: indices, UUIDs or MIG names. None where it is not set.

    As in CUDA, the list ends at the first entry that names no device, such as -1.
    """
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return list(takewhile(lambda name: name and not name.startswith("-"), names))


def devices_of_processes(processes: int, environment: Mapping[str, str]) -> list[str]:
    """A device for each process of this machine: the first ones that the user lets it see, else the first ones."""
    devices = visible_devices(environment) or []
    return devices[:processes] if len(devices) >= processes else [str(index) for index in range(processes)]


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
