"""A node counts as lost after a silence only where it is pinged; a slow save after a signal is no silence, nor is the
silence of a supervisor that was held up."""

import json
import subprocess
import sys
import time

import pytest

from config.recipe import ROOT
from launch.supervise import SILENCE, UNANSWERED, silent_nodes

REPORT = json.dumps({"node": 0, "died": [], "step": 3, "ended": "saved", "stacks": []})

# A node that sends a signal to its supervisor and then takes two seconds to save.
SLOW_TO_SAVE = f"""
import os, signal, sys, time
os.kill(os.getppid(), signal.SIGTERM)
sys.stdin.readline()
print('{{"here": 0}}', flush=True)
time.sleep(2)
print({REPORT!r}, flush=True)
"""


# A node that answers PINGs, and in whose second one its supervisor is stopped for two seconds.
ANSWERING = f"""
import os, signal, sys, time
for number in range(4):
    sys.stdin.readline()
    print('{{"here": 0}}', flush=True)
    if number == 1:
        time.sleep(0.3)
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(2)
        os.kill(os.getppid(), signal.SIGCONT)
print({REPORT!r}, flush=True)
"""


def python(*lines):
    """A process of Python in the checkout, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize(("remote", "code", "died"), [(False, 0, ""), (True, 1, "host1: no answer for 0.5 seconds")])
def test_only_a_remote_node_is_lost_when_it_falls_silent(remote, code, died):
    process = python(
        "import os, sys",
        "import launch.supervise as module",
        "module.SILENCE, module.GRACE, module.LAST, module.PING = 0.5, 0.1, 0.1, 0.2",
        f"outcome = module.supervise([[sys.executable, '-c', {SLOW_TO_SAVE!r}]], ['host1'], os.environ, {remote})",
        "print(outcome.code, outcome.died, sep='|')",
    )
    output, _ = process.communicate(timeout=60)
    assert output.strip() == f"{code}|{died}"


@pytest.mark.slow(seconds=6)
def test_a_supervisor_that_was_held_up_asks_again_before_a_node_is_lost():
    process = python(
        "import os, sys",
        "import launch.supervise as module",
        "module.SILENCE, module.GRACE, module.LAST, module.PING = 1.5, 0.1, 0.1, 1.0",
        f"outcome = module.supervise([[sys.executable, '-c', {ANSWERING!r}]], ['host1'], os.environ)",
        "print(outcome.code, outcome.died, outcome.ended, sep='|')",
    )
    output, _ = process.communicate(timeout=60)
    assert output.strip() == "0||saved"


@pytest.mark.parametrize(
    ("answered", "asked", "lost"),
    [
        (SILENCE + 1, (12, 8, 4), [0]),
        (SILENCE + 1, (60, 8, 4), []),  # it answered the first of these
        (SILENCE + 1, (8, 4), []),
        (SILENCE - 1, (12, 8, 4), []),
    ],
)
def test_a_node_is_lost_after_a_silence_in_which_it_was_asked(answered, asked, lost):
    assert len(asked) <= UNANSWERED
    now = time.monotonic()
    assert silent_nodes({0: now - answered}, [now - seconds for seconds in asked], []) == lost
    assert silent_nodes({0: now - answered}, [now - seconds for seconds in asked], [{"node": 0}]) == []


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize(("word", "ends_early"), [("SIGTERM", False), ("PING", True)])
def test_a_node_ends_itself_after_a_silence_only_if_it_was_pinged(tmp_path, word, ends_early):
    process = python(
        "import sys",
        "from pathlib import Path",
        "import launch.node as module",
        "module.SILENCE = 0.5",
        f"command = ['sh', '-c', 'sleep {60 if ends_early else 3}; exit 7']",
        f"sys.exit(module.Supervisor(command, Path({str(tmp_path)!r}), 0, 1).run())",
    )
    begun = time.monotonic()
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    assert process.wait(timeout=120) == (1 if ends_early else 7)
    assert ends_early or time.monotonic() - begun > 3


# A launcher whose rank 0 ends by a user's mistake while rank 1 waits for it.
MISTAKEN = """
import os, sys, time
from pathlib import Path
from training.rank_status import STATUS_BYTES, WORDS, write_rank, write_status
for rank in (0, 1):
    pid = os.fork()
    if not pid and rank == 0:
        time.sleep(1)
        (Path(os.environ[WORDS]) / f'{os.getpid()}.json').write_bytes(b' ' * STATUS_BYTES)
        write_status(2, '')
        os._exit(2)
    if not pid:
        time.sleep(100)
    write_rank(pid, rank)
time.sleep(100)
"""


def test_a_connection_that_breaks_is_exit_code_1():
    process = python(
        "import os",
        "from launch.supervise import supervise",
        "outcome = supervise([['sh', '-c', 'exit 255']], ['host1'], os.environ)",
        "print(outcome.code, outcome.died, sep='|')",
    )
    output, _ = process.communicate(timeout=120)
    assert output.strip() == "1|host1: the connection to it ended (exit code 255)"


@pytest.mark.slow(seconds=4)
def test_a_mistake_that_only_one_rank_finds_is_exit_code_2(tmp_path):
    process = python(
        "import sys",
        "from pathlib import Path",
        "import launch.node as module",
        "module.GRACE = 0.2",
        f"command = [sys.executable, '-c', {MISTAKEN!r}]",
        f"sys.exit(module.Supervisor(command, Path({str(tmp_path)!r}), 0, 2).run())",
    )
    assert process.wait(timeout=120) == 2  # its standard input stays open meanwhile
    assert json.loads(process.stdout.read().splitlines()[-1])["died"] == []
