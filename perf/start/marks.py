"""Marks of `perf.start`: each process of a run notes when it begins and how long its imports and first calls take.

Python imports this module before the program (by a sitecustomize.py on PYTHONPATH), so it must stay light. Each span is
a line of JSON in the folder SWAVE_MARKS: process id, process, what, begin and end in seconds since 1970, CPU seconds,
and the CPU seconds of the process so far.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = "SWAVE_MARKS"
IMPORTS = ("torch", "deepspeed", "numba", "nvidia.dali", "timm", "torchvision", "tensorboard", "torch._dynamo")
FIRST_STEP = "first step"  # ends with the step; the loop logs it then
CALLS = {  # module -> function -> what it does
    "config.recipe": {"load_config": "read settings"},
    "pipeline.fashion_mnist": {"prepare": "fetch the demo's images"},
    "pipeline.dataset.open": {"open_splits": "open the images' tables"},
    "pipeline.kernel.kernel": {"Kernel.__init__": "load the kernel"},
    "training.build": {"build_loader": "build the loader", "starting_network": "build the network"},
    "training.deepspeed_engine": {"build_engine": "build the engine"},
    "training.checkpoint.save_load": {"latest_checkpoint": "look for a checkpoint"},
    "training.run_directory": {"Journal.open": "open the records", "Journal.progress": FIRST_STEP},
    "pipeline.loader": {"Loader._take": "wait for the first batch"},
}


def install() -> None:
    """Mark this process, and the processes that are forked from it."""
    record("start the interpreter", started_at(), time.process_time())
    sys.meta_path.insert(0, _Marker())


def started_at() -> float:
    """When this process was started, in seconds since 1970, to a hundredth."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - float(Path("/proc/uptime").read_text().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


def record(what: str, begin: float, cpu: float) -> None:
    """Write a span that ends now."""
    name = f"rank {os.environ['RANK']}" if "RANK" in os.environ else _program()
    span = {"pid": os.getpid(), "process": name, "what": what, "begin": begin, "end": time.time(), "cpu": cpu}
    span["so_far"] = time.process_time()
    with (Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(span) + "\n")


def _program() -> str:
    words = sys.orig_argv
    return words[words.index("-m") + 1] if "-m" in words else "python"


@contextmanager
def _span(what: str) -> Iterator[None]:
    begin, cpu = time.time(), time.process_time()
    try:
        yield
    finally:
        record(what, begin, time.process_time() - cpu)


class _Marker(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module, and marks the modules of IMPORTS and the functions of CALLS."""

    def __init__(self) -> None:
        self.searching = False

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if self.searching or (name not in IMPORTS and name not in CALLS):
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _executed(name, execute, module)  # type: ignore[method-assign]
        return spec


def _executed(name: str, execute: Callable[[Any], None], module: Any) -> None:
    if name in IMPORTS:
        with _span(f"import {name}"):
            execute(module)
    else:
        execute(module)
    for function, what in CALLS.get(name, {}).items():
        *owners, attribute = function.split(".")
        owner = functools.reduce(getattr, owners, module)
        setattr(owner, attribute, _marked(getattr(owner, attribute), what))


def _marked(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """The function, its first call in each process marked."""
    called: set[int] = set()

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if os.getpid() in called:
            return function(*args, **kwargs)
        called.add(os.getpid())
        with _span(what):
            return function(*args, **kwargs)

    return call
