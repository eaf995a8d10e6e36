"""Start a run on this machine: check everything once, then hand over to the deepspeed launcher and pass signals on.

    python -m launch.start [--processes N] [--dry] RECIPE.yaml [key=value ...]

One process a GPU; on a machine without GPUs two, with the cores shared out. SIGTERM, SIGINT, SIGUSR1 and SIGHUP reach
every process of the run at once: it saves at the end of its step and ends with exit code 0. A second Ctrl-C kills it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from config.recipe import ROOT, ConfigError, load_config
from launch.cluster import Cluster, free_port
from launch.report import mistakes_end_the_run
from launch.stopping import StopSignal, stop_signals

CPU_PROCESSES = 2


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.start", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=0, help="processes to start (default: one a GPU, 2 on a CPU)")
    parser.add_argument("--dry", action="store_true", help="print the command and end")
    parser.add_argument("recipe", help="a recipe, e.g. config/demo.yaml")
    parser.add_argument("settings", nargs="*", help="key=value settings that override the recipe's")
    options = parser.parse_args(arguments)
    with mistakes_end_the_run(Cluster()):
        config = load_config([options.recipe, *options.settings])
        if options.processes < 0:
            raise ConfigError(f"--processes={options.processes}: expected 1 or more, or leave it out")
        processes = options.processes or visible_gpus() or min(CPU_PROCESSES, len(os.sched_getaffinity(0)))
        if config.run.batch_size % processes:
            raise ConfigError(f"run.batch_size={config.run.batch_size} does not split over {processes} processes")
        command = launch_command(processes, free_port(), [options.recipe, *options.settings])
        if options.dry:
            print(shlex.join(command))
            return 0
        stop_signal = StopSignal(at_once=True)
        prepare_data(config)
        stop_signal.at_once = False  # from here on they are passed on
    return run(command, launch_environment(processes))


def launch_command(processes: int, port: int, arguments: list[str]) -> list[str]:
    """The deepspeed launcher's command line for `processes` on this machine."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical"),
        *("--no_local_rank", "--num_gpus", str(processes), "--master_addr", "127.0.0.1", "--master_port", str(port)),
        *(str(ROOT / "train.py"), *arguments),
    ]


def launch_environment(processes: int) -> dict[str, str]:
    """The environment of the run: cores shared out evenly, DeepSpeed on the CPU where there is no GPU."""
    cores = len(os.sched_getaffinity(0))
    environment = {"OMP_NUM_THREADS": str(max(1, cores // processes)), "DS_LOG_LEVEL": "warning"}
    if not visible_gpus():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment | dict(os.environ)


def visible_gpus() -> int:
    """CUDA GPUs that a process started from here would see, without importing torch."""
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    found = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else min(found, len([name for name in visible.split(",") if name.strip()]))


def prepare_data(config: Any) -> None:
    """Fetch the demo's data if the recipe asks for it, and scan the dataset once, before any process starts."""
    from pipeline.dataset import open_splits
    from pipeline.fashion_mnist import prepare

    if Path(config.data.path) == Path("data/fashion-mnist"):
        prepare(Path(config.data.path))
    open_splits(config.data, progress=True)


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run the launcher in a session of its own until it ends; returns its exit code.

    Signals go to the training processes alone: the launcher would kill them, or die and leave them behind. All below
    are started with them blocked, so that one which comes early waits for `launch.stopping.StopSignal`.
    """
    signals = stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    launcher = subprocess.Popen(command, env=environment, start_new_session=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # so that its end ends the wait below
    wanted, told = 0, set[int]()
    while launcher.poll() is None:
        received = signal.sigtimedwait([*signals, signal.SIGCHLD], 0.2 if wanted else 60)
        if received is not None and received.si_signo != signal.SIGCHLD:
            if wanted == received.si_signo == signal.SIGINT:
                os.killpg(launcher.pid, signal.SIGKILL)
            wanted = received.si_signo
            told.clear()
        for process in training_processes(launcher.pid) if wanted else []:
            if process.pid not in told:
                told.add(process.pid)
                process.send_signal(signal.SIGUSR1 if wanted == signal.SIGUSR1 else signal.SIGTERM)
    return launcher.wait()


def training_processes(launcher: int) -> list[Any]:
    """The processes below the launcher that run train.py, as psutil processes."""
    import psutil

    script = str(ROOT / "train.py")
    found = []
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            if process.environ().get("RANK") is not None and script in process.cmdline():
                found.append(process)
        except psutil.Error:  # ended in the meantime
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
