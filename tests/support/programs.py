"""Run programs in this process, read command lines of others, and wait for steps of a run."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings

import psutil


def run_module(module, *arguments, folder=None):
    """As subprocess.run([python, "-m", module, *arguments], cwd=folder) in this process; a CompletedProcess.

    For a program's messages and exit codes before it starts its work: this process has imported its modules already.
    """
    words, code = [str(argument) for argument in arguments], 0
    stdout, stderr = io.StringIO(), io.StringIO()
    kept = sys.argv, dict(os.environ), {number: signal.getsignal(number) for number in _STOPPING}
    with (
        contextlib.chdir(folder or os.getcwd()),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
        sys.argv = [module, *words]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.argv = kept[0]
            os.environ.clear()
            os.environ.update(kept[1])
            for number, handler in kept[2].items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess([module, *words], code, stdout.getvalue(), stderr.getvalue())


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def words_of(process):
    """The words of a process's command; [] if it has ended or is ending."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def rank_of(process):
    """The rank of a process that launch.ranks has forked; None if it is no rank, or has ended."""
    try:
        name = process.name()
    except psutil.Error:
        return None
    return int(name.removeprefix("rank ")) if name.startswith("rank ") else None


def is_launcher(process):
    """Whether a process is the launcher of a node. Ranks have its command line too."""
    return "launch.ranks" in words_of(process) and rank_of(process) is None


def wait_for_steps(directory, count, process, output=None, longest=600):
    """Wait until the run in `directory` has logged `count` steps. Fails with its output if it ends or takes too long.

    output: the file that the process writes to; None if it is asked by communicate().
    """
    metrics, deadline = directory / "metrics.jsonl", time.monotonic() + longest
    while not (metrics.exists() and metrics.read_text().count('"loss"') >= count):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            text = output.read_text() if output else process.communicate()[0] if ended else "still running"
            raise AssertionError(f"no step {count}: {text}")
        time.sleep(0.005)
