"""A pod of a Kubernetes Indexed Job: this node's part of a run, and an exit code that the Job understands.

    python -m launch.pod --nodes N --processes P --master HOST [--port 29500] RECIPE.yaml [key=value ...]

The node's number is the pod's index (JOB_COMPLETION_INDEX). Below runs `launch.node`, as under `launch.start`. A pod
that is evicted gets SIGTERM, and the run saves; but a Job takes exit code 0 for done and would never start that pod
again. So a run that was saved before its end is exit code 75 here. Others: 0 done, 1 a process died, 2 a mistake.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from common.cli import Parser, exit_on_mistake, print_error
from config.recipe import ConfigError, load_config
from launch.done import is_done
from launch.supervise import conduct

SAVED = 75  # EX_TEMPFAIL of sysexits.h: try again


def main(arguments: Sequence[str]) -> int:
    parser = Parser("python -m launch.pod", __doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, required=True, help="pods of the Job")
    parser.add_argument("--processes", type=int, required=True, help="on each: its GPUs")
    parser.add_argument("--master", required=True, help="name of the pod with index 0")
    parser.add_argument("--port", type=int, default=29500, help="where its process 0 listens (default 29500)")
    parser.add_argument("settings", nargs="+", help="a recipe and key=value settings")
    options = parser.parse_args(arguments)
    with exit_on_mistake():
        index = pod_index(os.environ.get("JOB_COMPLETION_INDEX"), options.nodes)
        if is_done(options.settings):  # a pod that is started again after the others have come to their end
            print_error("the run is done")
            return 0
    counts = ",".join([str(options.processes)] * options.nodes)
    place = ["--rank", str(index), "--processes", counts, "--master", options.master, "--port", str(options.port)]
    place += ["--directory", load_config(options.settings).run.directory]
    command = [sys.executable, "-m", "launch.node", *place, *options.settings]
    outcome = conduct([command], [socket.gethostname()], os.environ, far=False)
    if outcome.died:
        print_error(outcome.died)
    return SAVED if outcome.code == 0 and not is_done(options.settings) else outcome.code


def pod_index(text: str | None, nodes: int) -> int:
    """This pod's number among them. Raises ConfigError where it is missing, or not below `nodes`."""
    if text is None or not text.isdecimal():
        raise ConfigError(f"JOB_COMPLETION_INDEX={text or ''} in the environment: is this a pod of an Indexed Job?")
    if int(text) >= nodes:
        raise ConfigError(
            f"--nodes={nodes}, but this is the pod with index {text}; the Job's completions must be {nodes}"
        )
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
