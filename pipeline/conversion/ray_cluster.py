"""Parts of a conversion as tasks of Ray, on one machine or on a cluster's.

Every node must see the source, the folder of OUT and this program at the same paths (a shared file system): a task
gets byte ranges and writes its part itself, so little goes through Ray. A node or worker that dies takes nothing with
it but its unfinished parts; they are done again elsewhere, with the same bytes.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from config.recipe import ROOT
from pipeline.dataset.table import DatasetError

RETRIES = 5  # times that Ray runs a task again after its worker or node died, and that we hand it in anew after that
AHEAD = 2  # tasks handed in for each CPU of the cluster


def on_ray(work: Callable[[Any], Any], tasks: Iterator[Any], address: str, workers: int) -> Iterator[Any]:
    """`map(work, tasks)` on Ray, each result as soon as it is there; `work` must bear to be run twice at once.

    address: of a running cluster; 'local' starts Ray on this machine with `workers` CPUs; 'auto' joins the cluster that
    RAY_ADDRESS names or that runs on this machine, and starts one like 'local' where there is none. Raises DatasetError
    where Ray is not installed or not reached, and where a task fails again and again.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        mend = "install it (pip install ray) or leave --ray out"
        raise DatasetError(f"--ray={address}: Ray is not installed; {mend}") from None
    found = _cluster(address)
    where: dict[str, Any] = {"address": found}
    if found == "local":
        where |= {"num_cpus": workers, "include_dashboard": False}
    elif address == "auto":
        tqdm.write(f"joining the Ray cluster at {found}", file=sys.stderr)  # the progress bar is there already
    handlers = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(**where, runtime_env=environment, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        told = " ".join(str(error).split())
        raise DatasetError(
            f"--ray={address}: Ray does not start there ({told}); give auto, local or its host:port"
        ) from None
    if threading.current_thread() is threading.main_thread():
        for sign, handler in handlers.items():
            signal.signal(sign, handler)  # Ray puts its own in their place
    try:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(work)
        flying: dict[Any, tuple[Any, int]] = {}  # future -> its task, and how often it was handed in
        waiting = next(tasks, None)
        while flying or waiting is not None:
            room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting is not None and len(flying) < room:
                flying[remote.remote(waiting)] = (waiting, 1)
                waiting = next(tasks, None)
            for future in ray.wait(list(flying), num_returns=1, timeout=10)[0]:
                task, times = flying.pop(future)
                try:
                    yield ray.get(future)
                except RayTaskError as error:  # our own code raised: a second time would be like the first
                    if isinstance(error.cause, DatasetError | OSError):
                        raise DatasetError(" ".join(str(error.cause).split())) from None
                    raise
                except RayError as error:
                    if times > RETRIES:
                        told = " ".join(str(error).split())
                        raise DatasetError(f"--ray={address}: a part failed {times} times ({told})") from None
                    flying[remote.remote(task)] = (task, times + 1)
    finally:
        ray.shutdown()


def _cluster(address: str) -> str:
    """Address of the cluster to join, or 'local'. Raises DatasetError if nobody listens where one is named."""
    setting = "--ray"
    if address == "auto" and os.environ.get("RAY_ADDRESS"):
        setting, address = "RAY_ADDRESS", os.environ["RAY_ADDRESS"]
    if address not in ("auto", "local"):
        if silence := _silence(address):
            told = f"{setting}={address}: no Ray cluster answers ({silence})"
            raise DatasetError(f"{told}; give auto, local or its host:port")
        return address
    if address == "local":
        return "local"
    from ray._private.services import canonicalize_bootstrap_address  # what ray.init does for 'auto'

    try:
        found = canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return "local"
    # A cluster that was killed leaves its address behind, on which ray.init would wait for minutes.
    return "local" if found is None or _silence(found) else found


def _silence(address: str) -> str:
    """Why nobody answers at host:port, '' if somebody does. Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        return getattr(error, "strerror", None) or "not of the form host:port"
    return ""
