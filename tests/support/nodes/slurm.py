"""SLURM from Debian's packages on virtual hosts: munged and slurmd on each, slurmctld on the first."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.virtual_cluster.hosts import Hosts
from perf.virtual_cluster.namespaces import SEARCH, program, wait

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "srun": "slurm-client", "munged": "munge"}
# Without control groups, since a host has no /sys/fs/cgroup. SLURM allocates cores and binds tasks to them.
CONFIGURATION = """ClusterName=swave
SlurmctldHost={first}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={spool}/%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
JobRequeue=1
ReturnToService=2
KillWait=30
MinJobAge=300
NodeName={names} CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """The first thing that this machine lacks for `Slurm`, in a few words; None if it has everything."""
    for name, package in PACKAGES.items():
        if not shutil.which(name, path=SEARCH):
            return f"no {name} (Debian: {package})"
    return "one core only" if os.cpu_count() == 1 else None


class Slurm:
    """SLURM on all `hosts`, running within the block, its files in `folder`. SLURM_CONF is set by `run`."""

    def __init__(self, hosts: Hosts, folder: str | Path) -> None:
        self.hosts, self.folder = hosts, Path(folder).resolve()
        self._daemons: list[subprocess.Popen[Any]] = []
        # For sockets, whose paths have 107 characters at most; a test's folder is too deep.
        self._spool = tempfile.TemporaryDirectory(prefix="slurmd-", ignore_cleanup_errors=True)

    def __enter__(self) -> Slurm:
        try:
            self._write_files()
            for index in range(len(self.hosts.names)):
                self._start_munged(index)
            self._start(0, program("slurmctld"), "-D", "-c")
            for index in range(len(self.hosts.names)):
                self._start(index, program("slurmd"), "-D")
            self.wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """End the daemons; processes that they leave behind end with the hosts."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=1)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        self._daemons.clear()
        self._spool.cleanup()

    def run(self, index: int, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """`Hosts.run` with SLURM's commands in PATH."""
        return self.hosts.run(index, command, **{"env": self.environment(), **options})

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SRUN_"))}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SEARCH} | dict(more or {})

    def ask(self, *command: str) -> str:
        """The output of a command on the first host."""
        asked = self.run(0, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return asked.communicate(timeout=120)[0]

    def wait_until_idle(self) -> None:
        """Until every node takes jobs. Raises RuntimeError if that takes too long."""
        wait(self._idle, f"SLURM's nodes are not idle, see {self.folder}/*.log")

    def _write_files(self) -> None:
        for name in ("state", "munge"):
            (self.folder / name).mkdir(parents=True)
        names = self.hosts.names
        values = {"first": names[0], "names": ",".join(names), "cores": os.cpu_count()}
        values |= {"folder": self.folder, "spool": self._spool.name}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # not used, so it needs no setup
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)

    def _start_munged(self, index: int) -> None:
        """A separate munged on each host: a shared one would refuse a credential that two hosts receive. The socket has
        the same path on every host."""
        own = self.folder / f"munge-{self.hosts.names[index]}"
        own.mkdir()
        if self.hosts.run(index, ["mount", "--bind", own, self.folder / "munge"]).wait():
            raise RuntimeError(f"no mount on {self.hosts.names[index]}")
        files = {"socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        places = [f"--{option}={self.folder}/munge/{name}" for option, name in files.items()]
        self._start(index, program("munged"), "--foreground", "--force", f"--key-file={self.folder}/munge.key", *places)
        wait((own / "socket").exists, f"munged does not start, see {own}/log")

    def _start(self, index: int, *command: str) -> None:
        log = (self.folder / f"{Path(command[0]).name}-{self.hosts.names[index]}.output").open("w")
        with log:
            self._daemons.append(self.run(index, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _idle(self) -> bool:
        return self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(self.hosts.names)
