"""Makes the parts of a conversion as tasks of Ray, on one machine or on a cluster.

Every node must see the source, the folder of OUT and this program at the same paths (a shared file system): a task gets
byte ranges and writes its part itself, so little data goes through Ray. If a node or worker dies, only its unfinished
parts are lost; other workers make them again, with the same bytes.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from common.progress import tqdm
from common.signals import ENDING
from config.recipe import ROOT
from pipeline.dataset.table import DatasetError

RETRIES = 5  # of a task by Ray after its worker or node died, and of submitting it again after that
AHEAD = 2  # submitted tasks per CPU of the cluster


def on_ray(work: Callable[[Any], Any], tasks: Iterator[Any], address: str, workers: int) -> Iterator[Any]:
    """`map(work, tasks)` on Ray, each result as soon as it is ready; two copies of a task may run at once.

    address: of a running cluster; 'local' starts Ray on this machine with `workers` CPUs; 'auto' joins the cluster that
    RAY_ADDRESS names or that runs on this machine, else acts like 'local'. Raises DatasetError if Ray is not installed
    or does not answer, and if a task fails repeatedly.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        advice = "install it (pip install ray) or leave --ray out"
        raise DatasetError(f"--ray={address}: Ray is not installed; {advice}") from None
    cluster = _cluster(address)
    settings: dict[str, Any] = {"address": cluster}
    if cluster == "local":
        settings |= {"num_cpus": workers, "include_dashboard": False}
    elif address == "auto":
        tqdm.write(f"joining the Ray cluster at {cluster}", file=sys.stderr)  # above the progress bar
    handlers = {sign: signal.getsignal(sign) for sign in ENDING}
    try:
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(**settings, runtime_env=environment, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"--ray={address}: Ray does not start there ({reason}); give auto, local or its host:port"
        ) from None
    if threading.current_thread() is threading.main_thread():
        for sign, handler in handlers.items():
            signal.signal(sign, handler)  # Ray replaces the handlers
    try:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(work)
        submitted: dict[Any, tuple[Any, int]] = {}  # future -> its task, and how often it was submitted
        waiting = next(tasks, None)
        while submitted or waiting is not None:
            room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting is not None and len(submitted) < room:
                submitted[remote.remote(waiting)] = (waiting, 1)
                waiting = next(tasks, None)
            for future in ray.wait(list(submitted), num_returns=1, timeout=10)[0]:
                task, times = submitted.pop(future)
                try:
                    yield ray.get(future)
                except RayTaskError as error:  # `work` itself raised: a retry would fail too
                    if isinstance(error.cause, DatasetError | OSError):
                        raise DatasetError(" ".join(str(error.cause).split())) from None
                    raise
                except RayError as error:
                    if times > RETRIES:
                        reason = " ".join(str(error).split())
                        raise DatasetError(f"--ray={address}: a part failed {times} times ({reason})") from None
                    submitted[remote.remote(task)] = (task, times + 1)
    finally:
        ray.shutdown()


def _cluster(address: str) -> str:
    """Address of the cluster to join, or 'local'. Raises DatasetError if no cluster answers at a given address."""
    setting = "--ray"
    if address == "auto" and os.environ.get("RAY_ADDRESS"):
        setting, address = "RAY_ADDRESS", os.environ["RAY_ADDRESS"]
    if address not in ("auto", "local"):
        if reason := _connection_error(address):
            problem = f"{setting}={address}: no Ray cluster answers ({reason})"
            raise DatasetError(f"{problem}; give auto, local or its host:port")
        return address
    if address == "local":
        return "local"
    from ray._private.services import canonicalize_bootstrap_address  # as ray.init does for 'auto'

    try:
        running = canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return "local"
    # A killed cluster leaves its address behind, and ray.init would wait for it for minutes.
    return "local" if running is None or _connection_error(running) else running


def _connection_error(address: str) -> str:
    """Why a connection to host:port fails, '' if it succeeds. Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        return getattr(error, "strerror", None) or "not of the form host:port"
    return ""
