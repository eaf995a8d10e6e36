"""All packages of a lock file as wheels in a folder, to install from without a network: launch/Dockerfile does.

    python -m launch.wheels requirements-cuda120.lock wheels        make wheels [DALI=cuda130]

pip fetches them and holds each against its hash in the lock. What has no wheel (ffcv, deepspeed) is built into one
here, and that has another hash than the lock's; so wheels/requirements.txt is written, a lock file of the wheels as
they lie there, which says which were built. They are for this machine's Python, and ffcv's for its release of Debian.
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
    parser = Parser("python -m launch.wheels", __doc__.splitlines()[0])
    parser.add_argument("lock", type=Path, help="requirements-cuda120.lock, requirements-cuda130.lock")
    parser.add_argument("folder", type=Path, help="where the wheels go")
    options = parser.parse_args(arguments)
    with exit_on_mistake():
        if not options.lock.is_file():
            raise ConfigError(f"no lock file {options.lock}; DALI is cuda120 or cuda130")
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--require-hashes"]
        if subprocess.run([*pip, "-r", str(options.lock), "-w", str(options.folder)]).returncode:
            raise ConfigError("pip could not fetch or build everything; its reason is above")
        lines = lock_of(options.folder, options.lock.read_text())
    (options.folder / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))
    built = [line.partition("==")[0] for line in lines if line.endswith(BUILT)]
    print(f"{options.folder}: {len(lines)} wheels, as in {options.lock}; built here: {', '.join(built) or 'none'}")
    return 0


def lock_of(folder: Path, lock: str) -> list[str]:
    """A requirement with its hash for every wheel in a folder. Wheels that the lock does not name are removed."""
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
