"""Processes forked from a server that has imported torch, DeepSpeed and our modules: a start takes tenths of a second.

Each pytest process starts its server at the first use. Compared with a new process, a forked one has only the imports
in addition: the server runs no threads and no functions of ours.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

from common import progress
from config.recipe import ROOT

PRELOADED = (
    *("torch", "deepspeed", "hypothesis", "pytest", "jaxtyping", "tensorboard", "rich.table"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # ZeRO imports it, and with it torch._inductor: three seconds
    *("tensorboard.compat.proto.event_pb2", "training.build", "training.auto", "pipeline.loader", "nvidia.dali.fn"),
    *("evaluation.backbones", "evaluation.session", "evaluation.classifiers.knn", "torchvision.transforms.v2"),
    *("perf.zero_ranks", "perf.kill_check"),
    # what train.py imports inside its functions: a quarter of a second of each run
    *("evaluation.report.watch", "model.monitor", "numpy.ma", "training.fastest_loader", "training.loggers.open"),
    *("training.passes.epoch_targets", "training.passes.warm_start", "training.profiling.profile"),
    *("training.run_directory", "training.run_state", "rich.console", "config.schema.check"),
)


def start_server():
    """Start the server of this pytest process unless it is running. The server sees no GPU."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        forkserver.ensure_running()


def context():
    """The multiprocessing context whose processes are forked from the server."""
    start_server()
    return multiprocessing.get_context("forkserver")


def run_processes(function, arguments):
    """function(*arguments[i]) in a process each, all at once; fails unless all end with exit code 0."""
    processes = [context().Process(target=function, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def run_forked(module, *arguments, folder=ROOT, environment=None, timeout=300):
    """As subprocess.run([python, "-m", module, *arguments], cwd=folder, capture_output=True, text=True) on a process
    that is forked. Processes that the program forks come from the same server.

    environment: variables in addition to this process's.
    """
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("stdout", "stderr")]
        values = {**os.environ, **(environment or {})}
        process = context().Process(target=_run_module, args=(module, words, folder, values, files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        stdout, stderr = (file.read_text() for file in files)
    return subprocess.CompletedProcess([module, *words], process.exitcode, stdout, stderr)


class Script:
    """A Python script on `ranks` forked processes, with the methods of subprocess.Popen that tests use.

    Exit code: the first that is not 0. All processes write to the file `output`. environment: variables in addition to
    this process's and to RANK, WORLD_SIZE, ..., which the ranks get as under torchrun.
    """

    def __init__(self, path, arguments, output, ranks=1, environment=None):
        from training.distributed import free_port

        self.output, arguments = output, list(arguments)
        output.write_text("")
        port = free_port() if ranks > 1 else None
        self.processes = [
            context().Process(
                target=_run_script,
                args=(
                    str(path),
                    arguments,
                    output,
                    {**os.environ, **_environment(rank, ranks, port), **(environment or {})},
                ),
            )
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()
        self.pid = self.processes[0].pid

    @property
    def returncode(self):
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        deadline = None if timeout is None else time.monotonic() + timeout
        for process in self.processes:
            wait([process.sentinel], None if deadline is None else max(0.0, deadline - time.monotonic()))
        assert self.poll() is not None, f"still running after {timeout} s: {self.output.read_text()}"
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end; the output and None."""
        self.wait(timeout)
        return self.output.read_text(), None

    def send_signal(self, number):
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        """Send SIGKILL to all ranks and the processes that they have started."""
        for process in self.processes:
            if process.exitcode is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:  # it has no session of its own yet, and so has started nothing
                    process.kill()
            process.join()


def _environment(rank, ranks, port):
    if ranks == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _run_module(module, arguments, folder, environment, files):
    _begin(folder, environment, *files)
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running  # the server that forked this process
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _begin(folder, environment, stdout, stderr):
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


def _run_script(path, arguments, output, environment):
    _begin(ROOT, environment, output, output)
    progress.DELAY = 0.0  # bars are shown at once, as these runs have no waits that are long enough for one
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
