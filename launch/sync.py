"""Copies this checkout with its .venv to the same path on every node of a hostfile, by rsync over ssh.

    python -m launch.sync HOSTFILE [--ssh "ssh -p 2222"] [--data PATH]        make sync HOSTFILE=hosts [DATA=/my/images]

Files that no longer exist here are deleted there; runs/, data/, wheels/ and caches are neither sent nor touched. The
Python from which .venv was made must exist on the nodes at the same path. --data also copies a file or folder of images
to the same path, and deletes nothing there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from common.cli import Parser, exit_on_mistake
from config.recipe import ROOT, ConfigError
from launch.nodes import read_hostfile

LOCAL_FOLDERS = ("/runs/", "/data/", "/wheels/")  # each machine has its own
CACHES = ("__pycache__/", "/.mypy_cache/", "/.ruff_cache/", "/.pytest_cache/", "/.hypothesis/")
VANISHED = 24  # rsync's exit code if a file disappeared while it was copying


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="python -m launch.sync", description=__doc__.splitlines()[0])
    parser.add_argument("hostfile", type=Path, help="nodes, one per line: `node1 slots=8`")
    parser.add_argument("--ssh", default="ssh", help="command that reaches them, e.g. 'ssh -p 2222' (default: ssh)")
    parser.add_argument("--data", type=Path, help="images to copy too: a file or a folder")
    options = parser.parse_args(arguments)
    with exit_on_mistake():
        hosts = [node.host for node in read_hostfile(options.hostfile, 1)]
        sources = [Source(ROOT, ROOT)]
        if options.data is not None:
            sources.append(data_source(options.data))
        for program in ("rsync", shlex.split(options.ssh)[0] if options.ssh.strip() else "ssh"):
            if shutil.which(program) is None:
                raise ConfigError(f"{program} is not installed; as root: apt-get install rsync openssh-client")
        sync(hosts, sources, options.ssh or "ssh")
    return 0


@dataclass(frozen=True)
class Source:
    """A file or folder of this machine. target: its path on the nodes. mirror: delete there what is missing here."""

    path: Path
    target: Path
    mirror: bool = True


def data_source(path: Path) -> Source:
    """Images, copied to the same path on the nodes. Raises ConfigError if the path does not exist."""
    if not path.exists():
        raise ConfigError(f"DATA={path}: there is no such file or folder")
    absolute = Path(os.path.abspath(path))  # links are not resolved: the recipe names the path as it is
    return Source(absolute, absolute, mirror=False)


def rsync_command(source: Source, host: str, ssh: str) -> list[str]:
    """The rsync command that copies `source` to a host."""
    command = ["rsync", "-a", "--mkpath", "--stats", "-e", f"{ssh} -o BatchMode=yes"]
    if source.mirror:
        # Perishable (p): caches do not keep a folder from being deleted.
        command += [
            "--delete",
            *(f"--exclude={name}" for name in LOCAL_FOLDERS),
            *(f"--filter=-p {name}" for name in CACHES),
        ]
    end = "/" if source.path.is_dir() else ""
    machine, _, name = host.rpartition("@")
    name = f"[{name}]" if ":" in name else name
    return [*command, f"{source.path}{end}", f"{machine}{'@' if machine else ''}{name}:{source.target}{end}"]


def sync(hosts: Sequence[str], sources: Sequence[Source], ssh: str = "ssh") -> None:
    """Copy all sources to all hosts at once; prints one line per host. Raises ConfigError that names failed hosts."""
    failed = []
    with ThreadPoolExecutor(max_workers=min(32, len(hosts))) as pool:
        for done in as_completed([pool.submit(sync_host, host, sources, ssh) for host in hosts]):
            try:
                print(done.result(), flush=True)
            except ConfigError as error:
                failed.append(str(error))
    if failed:
        raise ConfigError("; ".join(sorted(failed)))


def sync_host(host: str, sources: Sequence[Source], ssh: str) -> str:
    """Copy all sources to a host; returns a line with counts. Raises ConfigError with rsync's or ssh's reason."""
    files = sent = 0
    begun = time.monotonic()
    for source in sources:
        done = subprocess.run(
            rsync_command(source, host, ssh),
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        if done.returncode not in (0, VANISHED):
            reasons = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise ConfigError(f"{host}: {reasons[0] if reasons else f'rsync ended with code {done.returncode}'}")
        files += statistic(done.stdout, "Number of regular files transferred")
        sent += statistic(done.stdout, "Total bytes sent")
    return f"{host}: {files:,} files, {sent / 1e6:,.1f} MB sent in {time.monotonic() - begun:.1f} s"


def statistic(text: str, name: str) -> int:
    """A number from rsync's --stats, 0 if it is missing."""
    match = re.search(rf"^{name}: ([\d,.]+)", text, re.MULTILINE)
    return int(re.sub(r"\D", "", match[1])) if match else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
