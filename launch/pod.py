"""Runs one node of a run in a pod of a Kubernetes Indexed Job, with exit codes that the Job understands.

    python -m launch.pod --nodes N --processes P --master HOST [--port 29500] RECIPE.yaml [key=value ...]

The node's number is the pod's index (JOB_COMPLETION_INDEX). The pod runs `launch.node`, as `launch.start` does on other
clusters. An evicted pod receives SIGTERM and the run saves; but exit code 0 would mean "done" to the Job, which would
never start the pod again. Exit code 75 therefore means saved before the end. 0: done, 1: a process died, 2: a mistake.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from common.cli import Parser, at_least, exit_on_mistake, print_error
from config.recipe import ConfigError, load_config
from launch.done import is_done
from launch.supervise import supervise

SAVED = 75  # EX_TEMPFAIL of sysexits.h: try again


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="python -m launch.pod", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=at_least(1), required=True, help="pods of the Job")
    parser.add_argument("--processes", type=at_least(1), required=True, help="on each pod, one per GPU")
    parser.add_argument("--master", required=True, help="host name of the pod with index 0")
    parser.add_argument("--port", type=int, default=29500, help="on which process 0 listens (default 29500)")
    parser.add_argument("settings", nargs="+", help="a recipe and key=value settings")
    options = parser.parse_args(arguments)
    with exit_on_mistake():
        index = pod_index(os.environ.get("JOB_COMPLETION_INDEX"), options.nodes)
        if is_done(options.settings):  # the Job started this pod again after the others had finished
            print_error("the run is done")
            return 0
    counts = ",".join([str(options.processes)] * options.nodes)
    node = ["--rank", str(index), "--processes", counts, "--master", options.master, "--port", str(options.port)]
    node += ["--directory", load_config(options.settings).run.directory]
    command = [sys.executable, "-m", "launch.node", *node, *options.settings]
    outcome = supervise([command], [socket.gethostname()], os.environ, remote=False)
    if outcome.died:
        print_error(outcome.died)
    return SAVED if outcome.code == 0 and not is_done(options.settings) else outcome.code


def pod_index(text: str | None, nodes: int) -> int:
    """This pod's number, from 0 to nodes - 1. Raises ConfigError if `text` is something else."""
    if text is None or not text.isdecimal():
        raise ConfigError(f"JOB_COMPLETION_INDEX={text or ''} in the environment: is this a pod of an Indexed Job?")
    if int(text) >= nodes:
        raise ConfigError(
            f"--nodes={nodes}, but this is the pod with index {text}; the Job's completions must be {nodes}"
        )
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
