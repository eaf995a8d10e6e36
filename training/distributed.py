"""The processes of a run: rank and world size from the environment, and the process group.

It reads only the usual variables: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE (DeepSpeed's name is LOCAL_SIZE),
MASTER_ADDR and MASTER_PORT. Where they are not set it reads OpenMPI's (OMPI_COMM_WORLD_RANK, ...), then srun's
(SLURM_PROCID, ...). So the same script runs under deepspeed, torchrun, mpirun, srun and alone.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.slurm import expand_counts
from config.recipe import ConfigError

# Seconds after which a thread that waits for Python's lock asks for it; Python's default is 0.005. The thread that
# trains gives the lock away at each call of torch, and then waits for it where a thread of the loader has taken it.
SWITCH_INTERVAL = 1e-4


@dataclass(frozen=True)
class Cluster:
    """This process: `rank` of `world_size` in all, `local_rank` of `local_world_size` on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process prints and writes files: rank 0."""
        return self.rank == 0

    def device(self) -> Any:
        """This rank's GPU, or the CPU where there is none."""
        import torch

        os.environ |= allocator_settings(os.environ)  # torch reads them at the first allocation
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", device_index(self.local_rank, self.local_world_size, torch.cuda.device_count()))

    def take_device(self) -> Any:
        """`device()`, from now on also the current one of this thread: what names no device touches no other GPU."""
        import torch

        device = self.device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    def add_up(self, values: list[int]) -> list[int]:
        """Sums of integers below 2**53 over all ranks. All ranks must call it."""
        import torch
        import torch.distributed as dist

        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.int64, device=self.device())
        dist.all_reduce(total)
        return total.tolist()

    def on_main(self, act: Callable[[], Any]) -> Any:
        """What `act` returns on rank 0, on all ranks; what it raises there is raised on all. All ranks must call it."""
        import torch.distributed as dist

        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome = [act(), None]
            except Exception as error:
                outcome = [None, error]
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def merge(self, part: dict[str, str]) -> dict[str, str]:
        """The entries of all ranks in one mapping. All ranks must call it."""
        import torch.distributed as dist

        parts: list[dict[str, str]] = [part] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(parts, part)
        return {name: value for one in parts for name, value in one.items()}


def cluster_from_environment(environment: dict[str, str] | None = None) -> Cluster:
    """This process's rank and world size, from the environment. Raises ConfigError where variables contradict."""
    env = dict(os.environ) if environment is None else environment

    def number(names: tuple[str, ...], default: int) -> int:
        for name in names:
            if name in env:
                try:
                    return int(env[name])
                except ValueError:
                    raise ConfigError(f"{name}={env[name]} in the environment is not a number") from None
        return default

    world_size = number(("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"), 1)
    rank = number(("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"), 0)
    if not {"RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"} & set(env):
        world_size = 1  # the shell of a batch script has SLURM_NTASKS but is not a task
    if not 0 <= rank < world_size:
        raise ConfigError(f"RANK={rank} does not fit WORLD_SIZE={world_size} in the environment")
    local_rank = number(("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"), 0)
    local_world_size = number(
        ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"),
        tasks_here(env) or world_size,
    )
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if world_size > 1 and name not in env:
            raise ConfigError(f"WORLD_SIZE={world_size} but {name} is not set; say where rank 0 runs")
    return Cluster(rank, world_size, local_rank, min(local_world_size, world_size))


def device_index(local_rank: int, local_world_size: int, visible: int) -> int:
    """The GPU of a rank among the `visible` ones of its process. Raises ConfigError if there are too few.

    Usually all ranks of a machine see all its GPUs. A scheduler may also show each rank only its own (SLURM's
    --gpus-per-task=1); that one is number 0 in every process.
    """
    if visible >= local_world_size:
        return local_rank
    if visible == 1:
        return 0
    raise ConfigError(
        f"{local_world_size} processes on this machine see {visible} GPUs; start one process for each GPU"
    )


def allocator_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch's allocator of GPU memory needs in the environment, {} where the user has chosen something.

    Segments that grow leave no gaps of the sizes that an evaluation needed.
    """
    chosen = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(environment)  # the second is the older name
    return {} if chosen else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def tasks_here(environment: dict[str, str]) -> int:
    """Tasks of srun's step on this node, 0 if unknown."""
    try:
        counts = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
        return counts[int(environment["SLURM_NODEID"])]
    except (KeyError, ValueError, IndexError):
        return 0


def deepspeed_environment(cluster: Cluster, device: Any, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that DeepSpeed reads in this process, whose device is `device` (a torch.device).

    It takes LOCAL_RANK for the number of the process's GPU: it binds NCCL to that one and makes it the current one. The
    two differ where a scheduler shows each process only its own GPU. Under mpirun DeepSpeed wants the same of OpenMPI's
    variable.
    """
    number = str(cluster.local_rank if device.index is None else device.index)
    variables = {"RANK": str(cluster.rank), "WORLD_SIZE": str(cluster.world_size), "LOCAL_RANK": number}
    openmpi = "OMPI_COMM_WORLD_LOCAL_RANK"
    return variables | ({openmpi: number} if openmpi in environment else {})


@contextmanager
def connected(cluster: Cluster, timeout: float = 1800.0) -> Iterator[None]:
    """The process group (NCCL on GPUs, gloo on CPUs) within the block.

    timeout: seconds after which a process that waits for the others fails (launch.timeout).
    """
    import torch
    from torch.distributed import distributed_c10d

    device, limit = cluster.take_device(), timedelta(seconds=timeout)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.backends.cudnn.benchmark = True  # shapes recur: cuDNN tries at the first which convolution is the fastest
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // cluster.local_world_size))
    sys.setswitchinterval(SWITCH_INTERVAL)
    os.environ |= deepspeed_environment(cluster, device, os.environ)
    if cluster.world_size == 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # Later groups, such as DeepSpeed's, take these defaults and not the timeout of the first group.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = limit
    backend = "nccl" if device.type == "cuda" else "gloo"
    quiet_deepspeed().init_distributed(backend, timeout=limit, verbose=False)
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            wait_for_gloo()
            torch.distributed.destroy_process_group()


def quiet_deepspeed() -> Any:
    """The deepspeed module, with less logging, and without compiling an extension at start.

    On CPUs DeepSpeed compiles a shared-memory all-reduce under a lock file. A killed start leaves that file behind, and
    every later start then waits for ever. gloo does the same work, so the extension is marked as incompatible. The
    table of compatible extensions is written here whole: reading it lets DeepSpeed probe all of them, with a compiler.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found"
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    return deepspeed


def wait_for_gloo(longest: float = 2.0) -> None:
    """Wait until gloo's threads rest, `longest` seconds at most.

    A thread that still holds a tensor of the last collective asks for the interpreter while the process ends. The
    process then aborts with code -6 ("terminate called without an active exception"). Destroying the process group is
    not enough, because DeepSpeed keeps a reference to it.
    """
    end, resting = time.monotonic() + longest, 0
    while time.monotonic() < end and resting < 2:  # twice: a thread that waits for the interpreter sleeps too
        time.sleep(0.005)
        resting = resting + 1 if set(gloo_states()) <= {"S"} else 0


def gloo_states() -> list[str]:
    """The states of the threads that run gloo's collectives: S sleeps, R runs, D waits for the disk."""
    states = []
    for task in Path("/proc/self/task").glob("*/stat"):
        with suppress(OSError):  # the thread has ended
            name, _, rest = task.read_text().rpartition(")")
            if name.endswith("(pt_gloo_runloop"):
                states.append(rest.split()[0])
    return states


def free_port() -> int:
    """A TCP port of this machine that is free now.

    It lies below 32768, where Linux begins to give out ports by itself: a port from there could be taken by any
    connection before process 0 listens on it.
    """
    numbers = random.SystemRandom()
    while True:
        with socket.socket() as s, suppress(OSError):  # in use
            port = numbers.randrange(16384, 32768)
            s.bind(("", port))
            return port
