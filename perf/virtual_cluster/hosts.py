"""Hosts of a cluster on one machine: network namespaces, each with an address, a hostname, a home and an sshd.

Needs root. The machine's own network stays as it is: the bridge between the hosts is in a namespace too. The hosts
share the file system (as over NFS, but /dev/shm is separate) and process ids. A host has no /sys/fs/cgroup. A dead
address is silent and gives no "no route to host", since the neighbours are set in advance.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.virtual_cluster.links import Bridge, Forwarder
from perf.virtual_cluster.namespaces import (
    FILES,
    SEARCH,
    call,
    claim,
    empty,
    ip,
    processes,
    program,
    remove,
    remove_left_over,
    wait,
)

# Arguments: the hostname, then pairs of files, each first one to be mounted over the second.
BOOT = """set -e; echo "$1" > /proc/sys/kernel/hostname; shift; mount -t tmpfs shm /dev/shm
while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done; echo up; exec sleep infinity"""
SSHD = """Port 22
AddressFamily inet
HostKey "{folder}/{name}/key"
PidFile none
StrictModes no
UsePAM no
MaxStartups 100
AuthorizedKeysFile "{folder}/key.pub"
PermitRootLogin prohibit-password
"""
SSH = """Host {name}
  HostName {address}
  User root
  IdentityFile "{folder}/key"
  IdentitiesOnly yes
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  LogLevel ERROR
"""


class Hosts:
    """`count` hosts (at most 250), made on entry and removed on exit, except for `folder`.

    delay: seconds from host to host, one way. loss: share of lost packets. With either of them a process
    (perf/virtual_cluster/delay.py) forwards packets, otherwise a bridge. binds: for a host index {source: target},
    paths that this host alone sees mounted; the target must exist. Indices count from 0, names from 1.

    names, addresses, homes: by index. ssh_config: for `ssh -F`; on the hosts plain `ssh NAME` works as well.
    Raises ValueError for numbers out of range; RuntimeError, also in the methods, if a tool or a host fails.
    """

    def __init__(
        self,
        count: int,
        folder: str | Path,
        delay: float = 0.0,
        loss: float = 0.0,
        binds: Mapping[int, Mapping[str | Path, str | Path]] | None = None,
    ) -> None:
        if not 1 <= count <= 250 or delay < 0 or not 0 <= loss <= 1 or not set(binds or {}) <= set(range(count)):
            raise ValueError(f"{count} hosts, delay {delay} s, loss {loss}, binds of {sorted(binds or {})}")
        self.names = [f"host{index + 1}" for index in range(count)]
        self.addresses: list[str] = []  # set on entry
        self.folder = Path(folder).resolve()
        self.homes = [self.folder / name / "home" for name in self.names]
        self.ssh_config = self.folder / "ssh_config"
        self.delay, self.loss, self.binds = delay, loss, binds or {}
        self._daemons: list[list[subprocess.Popen[str]]] = [[] for _ in self.names]

    def __enter__(self) -> Hosts:
        remove_left_over()
        with contextlib.ExitStack() as stack:
            wire, number = claim()
            stack.callback(remove, wire)
            self._spaces = [f"{wire.removesuffix('wire')}{name}" for name in self.names]
            self.addresses = [f"10.77.{number}.{index + 1}" for index in range(len(self.names))]
            self._write_files()
            for index, space in enumerate(self._spaces):
                stack.callback(self._end, index)
                ip("netns", "add", space)
                ip("-n", space, "link", "set", "lo", "up")
            self._link = self._make_link(wire)
            stack.callback(self._link.end)  # before the namespaces of its devices are removed
            for index in range(len(self.names)):
                self._start(index)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave.close()

    def run(self, index: int, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start `command` on a host, in a new session and with the host's HOME. options: those of Popen."""
        if not self._daemons[index]:
            raise RuntimeError(f"{self.names[index]} was killed")
        folder = Path(options.pop("cwd", None) or Path.cwd()).resolve()  # looked up on the host
        environment = {**(options.pop("env", None) or os.environ), "HOME": str(self.homes[index])}
        enter = ["nsenter", "-t", str(self._daemons[index][0].pid), "-m", "-u", "-n", f"--wdns={folder}"]
        return subprocess.Popen([*enter, *command], env=environment, **{"start_new_session": True, **options})

    def cut(self, index: int) -> None:
        """Take a host's link down: packets are lost in both directions, also those on their way."""
        self._link.switch(index, up=False)

    def join(self, index: int) -> None:
        """Take a host's link up again."""
        self._link.switch(index, up=True)

    def kill(self, index: int) -> None:
        """A power cut: first no packet leaves any more, then all processes of the host are killed, with its sshd."""
        self.cut(index)
        empty(self._spaces[index])
        self._reap(index)

    def boot(self, index: int) -> None:
        """Start a killed host again, its link up."""
        if self._daemons[index]:
            raise RuntimeError(f"{self.names[index]} runs")
        self.join(index)
        self._start(index)

    def processes(self, index: int) -> list[int]:
        """Ids of all processes on a host: one that keeps its namespaces, its sshd, and those started later."""
        return processes(self._spaces[index])

    def _write_files(self) -> None:
        for index, name in enumerate(self.names):
            (self.homes[index] / ".ssh").mkdir(parents=True, exist_ok=True)
            (self.folder / name / "sshd_config").write_text(SSHD.format(folder=self.folder, name=name))
            _make_key(self.folder / name / "key")
            (self.homes[index] / ".ssh" / "config").unlink(missing_ok=True)
            (self.homes[index] / ".ssh" / "config").symlink_to(self.ssh_config)
        _make_key(self.folder / "key")
        hosts = list(zip(self.names, self.addresses, strict=True))
        self.ssh_config.write_text("".join(SSH.format(name=n, address=a, folder=self.folder) for n, a in hosts))
        hosts_file = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in hosts)
        for space, home in zip(self._spaces, self.homes, strict=True):
            (FILES / space).mkdir(parents=True, exist_ok=True)
            (FILES / space / "hosts").write_text(hosts_file)
            (FILES / space / "passwd").write_text(_with_home(Path("/etc/passwd").read_text(), home))

    def _make_link(self, wire: str) -> Bridge | Forwarder:
        if self.delay or self.loss:
            return Forwarder(wire, self._spaces, self.addresses, self.delay, self.loss)
        return Bridge(wire, self._spaces, self.addresses)

    def _start(self, index: int) -> None:
        """Start a sleeping process that keeps the mount and hostname namespaces, then sshd."""
        name, space = self.names[index], self._spaces[index]
        binds = [str(path) for pair in self.binds.get(index, {}).items() for path in pair]
        boot = ["netns", "exec", space, "unshare", "--uts", "sh", "-c", BOOT, "boot", name, *binds]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        holder = subprocess.Popen([program("ip"), *boot], start_new_session=True, **pipes)
        self._daemons[index].append(holder)
        assert holder.stdout and holder.stderr
        if holder.stdout.readline() != "up\n":
            raise RuntimeError(f"{name} does not start: {holder.stderr.read().strip()}")
        Path("/run/sshd").mkdir(exist_ok=True)
        log, folder = self.folder / name / "sshd.log", self.folder / name
        command: list[str | Path] = [program("sshd"), "-D", "-f", folder / "sshd_config", "-E", log]
        sshd = self.run(index, command, stdin=subprocess.DEVNULL)
        self._daemons[index].append(sshd)
        wait(lambda: _listens(holder.pid), f"sshd of {name} does not start, see {log}")

    def _reap(self, index: int) -> None:
        for process in self._daemons[index]:
            process.communicate()
        self._daemons[index].clear()

    def _end(self, index: int) -> None:
        remove(self._spaces[index])
        self._reap(index)


def missing() -> str | None:
    """The first thing that `Hosts` needs and this machine lacks, in a few words; None if nothing is missing."""
    if os.geteuid() != 0:
        return "not root"
    packages = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "nsenter": "util-linux"}
    for name, package in packages.items():
        if not shutil.which(name, path=SEARCH):
            return f"no {name} (Debian: {package})"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    probe = "mount -t tmpfs none /dev/shm && ip link add swave0 type veth peer name swave1"
    trial = subprocess.run(["unshare", "--mount", "--uts", "--net", "sh", "-c", probe], capture_output=True, text=True)
    return f"namespaces are not permitted: {trial.stderr.strip()[-200:]}" if trial.returncode else None


def _listens(pid: int) -> bool:
    """Whether port 22 (16 in hexadecimal) has a listener (state 0A) in the network of a process."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]
    return any(row[1].endswith(":0016") and row[3] == "0A" for row in rows)


def _make_key(file: Path) -> None:
    for old in (file, file.with_name(file.name + ".pub")):
        old.unlink(missing_ok=True)
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file))


def _with_home(users: str, home: Path) -> str:
    """`users`, the text of an /etc/passwd, with `home` for root."""
    lines = [line.split(":") for line in users.splitlines()]
    return "".join(":".join([*row[:5], str(home), *row[6:]] if row[0] == "root" else row) + "\n" for row in lines)
