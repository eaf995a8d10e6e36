"""DeepSpeed's launcher, which on CPUs forks the ranks from itself once it has imported what they import.

    python -m launch.ranks [options of deepspeed.launcher.launch] train.py RECIPE.yaml [key=value ...]

A new interpreter takes three CPU seconds to import torch and DeepSpeed. The launcher has imported them anyway, and a
forked rank finds them in its memory. CUDA does not survive a fork: where a GPU is visible, ranks are new interpreters.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.launcher.launch as launcher

from common.machine import environment_of_rank, visible_gpus
from common.processes import imported_by
from training.rank_status import write_rank

POLL = 0.1  # seconds from one look at the ranks to the next; DeepSpeed takes a whole one
PR_SET_NAME = 15


def main() -> None:
    options = launcher.parse_args()
    forks = not visible_gpus()
    if forks:
        for name in imported_by(Path(source_of(options.training_script, options.module)).read_text()):
            importlib.import_module(name)
        gc.freeze()  # the ranks' garbage collectors leave these modules alone, and so share their memory

    def start(command: Sequence[str], env: Mapping[str, str]) -> Any:
        own = environment_of_rank(env)
        process = Forked(command[2:], own) if forks else subprocess.Popen(command, env=own)
        write_rank(process.pid, int(env["RANK"]))
        return process

    launcher.subprocess = SimpleNamespace(Popen=start)
    launcher.time = SimpleNamespace(sleep=lambda _seconds: time.sleep(POLL))
    launcher.main()


def source_of(program: str, module: bool) -> str:
    """The file of a program: a script, or a module by name."""
    spec = importlib.util.find_spec(program) if module else None
    return program if spec is None or spec.origin is None else spec.origin


class Forked:
    """A forked process that runs a program, with what DeepSpeed's launcher uses of subprocess.Popen.

    words: the program and its arguments, as they follow `python -u`. The child leaves by SystemExit, so that it ends as
    an interpreter of its own would.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            sys.exit(_run(list(words), dict(environment)))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _run(words: list[str], environment: dict[str, str]) -> int:
    os.environ.clear()
    os.environ.update(environment)
    ctypes.CDLL(None).prctl(PR_SET_NAME, f"rank {environment['RANK']}".encode(), 0, 0, 0)  # the name in ps and top
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    main()
