"""A separate sshd on this machine, which two host names lead to."""

import contextlib
import os
import shutil
import subprocess
import time

import pytest

from training.distributed import free_port

SSHD = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
NEEDS_SSHD = [
    pytest.mark.skipif(SSHD is None or not shutil.which("ssh"), reason="no sshd here (Debian: openssh-server)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="sshd wants root here"),
]


@contextlib.contextmanager
def sshd(folder):
    """Run sshd within the block. `folder`/hosts lists hosts one and two; `ssh -F folder/ssh_config` reaches them."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nUsePAM no\nPermitRootLogin prohibit-password\n"
    )
    (folder / "ssh_config").write_text(
        f"Host one two\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  LogLevel ERROR\n"
        "  IdentitiesOnly yes\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n"
    )
    (folder / "hosts").write_text("one slots=1\ntwo slots=1\n")
    os.makedirs("/run/sshd", exist_ok=True)
    daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while subprocess.run(["ssh", "-F", f"{folder}/ssh_config", "one", "true"], capture_output=True).returncode:
            assert time.monotonic() < deadline and daemon.poll() is None
            time.sleep(0.05)
        yield folder
    finally:
        daemon.terminate()
        daemon.wait()
