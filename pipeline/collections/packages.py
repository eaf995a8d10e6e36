"""Packages of Debian and npm as files on disk, by the registries' own clients. Nothing is installed."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.cli import note
from common.progress import progress_bar


class Unavailable(Exception):
    """A source does not have the files; the message says why and what helps."""


def from_debian(package: str, size: int, folder: Path, progress: bool) -> Path:
    """The folder below `folder` that holds the files of Debian's `package` as they would be under /.

    size: of the download in bytes, for the bar. A package that is in `folder` already is not fetched again. Raises
    Unavailable.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unavailable("no apt-get here")
    # As root, apt would let the user _apt download, who may not write here, and print a warning.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    command = ["apt-get", *sandbox, "-q", "download", package]
    advice = "run `apt-get update` once, as root"
    file = _fetched(command, f"{package}_*.deb", f"Debian's package {package}", size, folder, progress, advice)
    unpacked = folder / package
    shutil.rmtree(unpacked, ignore_errors=True)  # of a call that was killed
    _run(["dpkg-deb", "-x", file.name, package], folder, "fetch it again")
    return unpacked


def from_npm(package: str, version: str, sha512: str, size: int, folder: Path, progress: bool) -> Path:
    """The archive (.tgz) of a version of an npm package in `folder`; fetched unless it is there.

    sha512: of the archive, in base64 as npm states it. Raises Unavailable.
    """
    pattern = f"{package.replace('@', '').replace('/', '-')}-{version}.tgz"
    if not (folder / pattern).exists() and not shutil.which("npm"):
        raise Unavailable(f"no npm here, which fetches {package}; install Node.js")
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    advice = "check the network and npm's registry"
    file = _fetched(command, pattern, f"npm's package {package}", size, folder, progress, advice)
    if base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode() != sha512:
        file.unlink()
        raise Unavailable(f"{file.name} is not the published file (its SHA-512 differs)")
    return file


def _fetched(command: list[str], pattern: str, what: str, size: int, folder: Path, progress: bool, advice: str) -> Path:
    """The file of that name in `folder`; if absent, the command downloads it. It is complete or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (there := sorted(folder.glob(pattern))):
        if progress:
            note(f"fetching {what} ({size / 1e6:.0f} MB)")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
            with progress_bar(size, f"fetching {what.split()[-1]}", "B", progress) as bar, _growing(Path(name), bar):
                _run(command, Path(name), advice)
            got = sorted(Path(name).glob(pattern))
            if not got:
                raise Unavailable(f"{' '.join(command[:2])} left no file {pattern}")
            there = [got[-1].replace(folder / got[-1].name)]
    return there[-1]


@contextmanager
def _growing(folder: Path, bar: Any) -> Iterator[None]:
    """In the block, the bar counts the bytes of the files that another program writes into `folder`."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            with suppress(OSError):  # a file that has just been renamed
                bar.update(sum(path.stat().st_size for path in folder.iterdir()) - bar.n)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()


def _run(command: list[str], folder: Path, advice: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{' '.join(command[:1])} failed ({' '.join(str(error).split())})") from None
    if done.returncode:
        last_line = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise Unavailable(f"{command[0]} failed ({last_line}): {advice}")
