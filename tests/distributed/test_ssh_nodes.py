"""Two nodes that are reached by a real sshd on this machine; skipped where there is none."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from config.recipe import ROOT
from perf.kill_check import make_recipe
from support.processes import words_of
from training.distributed import free_port

SSHD = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None or not shutil.which("ssh"), reason="no sshd here (Debian: openssh-server)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="sshd wants root here"),
]


@pytest.fixture
def cluster(tmp_path):
    """A hostfile of two names that an sshd of our own answers to, and the ssh command that knows them."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    port = free_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile {tmp_path}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nUsePAM no\nPermitRootLogin prohibit-password\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"Host one two\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {tmp_path}/user\n  LogLevel ERROR\n"
        "  IdentitiesOnly yes\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n"
    )
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n")
    os.makedirs("/run/sshd", exist_ok=True)
    daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=subprocess.DEVNULL)
    yield tmp_path
    daemon.terminate()
    daemon.wait()


def start(folder, *settings):
    recipe = make_recipe(folder)
    nodes = ["--hostfile", str(folder / "hosts"), "--ssh", f"ssh -F {folder}/ssh_config"]
    command = [sys.executable, "-m", "launch.start", *nodes, str(recipe), f"run.directory={folder / 'run'}", *settings]
    with (folder / "output").open("w") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)


def left_behind(folder):
    found = [p for p in psutil.process_iter(["cmdline"]) if any(f"{folder}/run" in w for w in p.info["cmdline"] or [])]
    return [p for p in found if p.pid != os.getpid()]


def finish(folder, process, seconds):
    code = process.wait(timeout=seconds)
    deadline = time.monotonic() + 10
    while left_behind(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_behind(folder)
    return code, (folder / "output").read_text()


def test_two_hosts_train_to_the_end(cluster):
    code, output = finish(cluster, start(cluster), 240)
    assert code == 0, output
    assert "NO CLUSTER" not in output and "k-NN accuracy, trained backbone" in output


def test_a_signal_is_passed_on_and_a_killed_connection_leaves_nothing(cluster):
    for how in ("signal", "connection"):
        process = start(cluster, "run.epochs=2000", "checkpoint.every=never")
        metrics, deadline = cluster / "run" / "metrics.jsonl", time.monotonic() + 120
        lines = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > lines + 2):
            assert time.monotonic() < deadline and process.poll() is None, (cluster / "output").read_text()
            time.sleep(0.05)
        if how == "signal":
            process.send_signal(signal.SIGTERM)
            code, output = finish(cluster, process, 60)
            assert code == 0 and "stopped by a signal, saved" in output, output
        else:
            connection = next(p for p in psutil.Process(process.pid).children() if "two" in words_of(p))
            connection.kill()
            code, output = finish(cluster, process, 60)
            assert code != 0, output


def test_a_host_that_cannot_be_reached_ends_it_with_its_reason(cluster):
    (cluster / "hosts").write_text("one slots=1\nnowhere.invalid slots=1\n")
    code, output = finish(cluster, start(cluster), 120)
    assert code != 0
    assert "nowhere.invalid" in output
