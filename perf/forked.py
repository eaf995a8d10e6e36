"""Programs of swave on processes forked from a server that has imported torch, DeepSpeed and DALI: a start takes tenths
of a second, and what a program does is no different."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from common.processes import environment, imported_by
from config.recipe import ROOT
from training.distributed import free_port

RANK_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
# Imported once, before the processes are forked, with what train.py imports. If each rank imported them, most of its
# time would go there, and so would most kills. No module here may start a thread or open a connection.
PRELOADED = ("deepspeed.runtime.zero.muon.muon_optimizer", "nvidia.dali.fn", "torch.utils.tensorboard")


def fork(
    arguments: Sequence[str],
    log: Path,
    ranks: int = 1,
    prepare: Callable[[int], None] | None = None,
    variables: Mapping[str, str] | None = None,
    folder: Path = ROOT,
) -> list[BaseProcess]:
    """Start `python ARGUMENTS` on `ranks` processes of this machine; their output is added to `log`.

    arguments: a script of this checkout, or -m and a module, and their own. prepare: called with the rank in each
    process before the program (a function that pickle can name). variables: of the environment. folder: the working
    directory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*imported_by((ROOT / "train.py").read_text()), *PRELOADED])
    port = free_port() if ranks > 1 else 0
    values = {**RANK_ENVIRONMENT, **(variables or {})}
    processes: list[BaseProcess] = [
        context.Process(
            target=run_program, args=(rank, ranks, port, list(arguments), log, prepare, values, folder)
        )
        for rank in range(ranks)
    ]  # fmt: skip
    with environment(RANK_ENVIRONMENT):  # the first start also starts the fork server, which keeps it
        for process in processes:
            process.start()
    return processes


def run_program(
    rank: int,
    ranks: int,
    port: int,
    arguments: list[str],
    log: Path,
    prepare: Callable[[int], None] | None,
    variables: Mapping[str, str],
    folder: Path,
) -> None:
    """Run the program as one of `ranks` processes, in a session of its own; see `fork`."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    os.chdir(folder)
    os.environ |= variables
    if ranks > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {name: str(value) for name, value in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if prepare is not None:
        prepare(rank)
    if arguments[0] == "-m":  # under its own name, so that `prepare` can change its functions
        package = (ROOT / arguments[1].replace(".", "/")).is_dir()
        sys.argv = list(arguments[1:])
        sys.exit(importlib.import_module(arguments[1] + ".__main__" * package).main(arguments[2:]))
    else:
        sys.argv = list(arguments)
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
