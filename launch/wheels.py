"""Collects all packages of a lock file as wheels in a folder, so that launch/Dockerfile installs without a network.

    python -m launch.wheels requirements-cuda120.lock wheels        make wheels [DALI=cuda130]

pip fetches the packages and checks their hashes against the lock. Packages without a wheel (ffcv, deepspeed) are built
here, which gives other hashes than the lock's. wheels/requirements.txt is therefore the folder's lock file, and
marks the wheels that were built. The wheels fit this machine's Python, and ffcv's its release of Debian.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import Parser, exit_on_mistake
from common.files import sha256
from config.recipe import ConfigError

BUILT = "  # built here"


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="python -m launch.wheels", description=__doc__.splitlines()[0])
    parser.add_argument("lock", type=Path, help="requirements-cuda120.lock or requirements-cuda130.lock")
    parser.add_argument("folder", type=Path, help="where the wheels go")
    options = parser.parse_args(arguments)
    with exit_on_mistake():
        if not options.lock.is_file():
            raise ConfigError(f"no lock file {options.lock}; give DALI=cuda120 or DALI=cuda130")
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--require-hashes"]
        if subprocess.run([*pip, "-r", str(options.lock), "-w", str(options.folder)]).returncode:
            raise ConfigError("pip could not fetch or build everything; its reason is above")
        lines = lock_of(options.folder, options.lock.read_text())
    (options.folder / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))
    built = [line.partition("==")[0] for line in lines if line.endswith(BUILT)]
    print(f"{options.folder}: {len(lines)} wheels of {options.lock}; built here: {', '.join(built) or 'none'}")
    return 0


def lock_of(folder: Path, lock: str) -> list[str]:
    """A requirement with a hash for each wheel in a folder. Deletes wheels that `lock` (a lock file's text) lacks."""
    named = set(re.findall(r"^([a-z0-9-]+==[^\s;\\]+)", lock, re.MULTILINE))
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        requirement = f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"
        if requirement not in named:
            wheel.unlink()
            continue
        digest = sha256(wheel)
        lines.append(f"{requirement} --hash=sha256:{digest}{'' if digest in lock else BUILT}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
