"""`python -m MODULE` without a process of its own: what it prints, and its exit code."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
import warnings


def run_module(module, *arguments, folder=None):
    """As subprocess.run([python, "-m", module, *arguments], cwd=folder) in this process; a CompletedProcess.

    For what a program says and how it ends before it starts any work: its imports are already here.
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
