"""What a node says of itself before a run, as one line of JSON: asked by `launch.preflight` on every node.

    python -m launch.node_facts DATA_PATH RUN_DIRECTORY [--dataset CACHE]

No heavy import, so that it answers within a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.machine import gpu_names
from config.recipe import ROOT
from training.distributed import free_port


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.node_facts", description=__doc__.splitlines()[0])
    parser.add_argument("data", help="data.path")
    parser.add_argument("directory", type=Path, help="run.directory")
    parser.add_argument("--dataset", metavar="CACHE", help="read the dataset too, with its table in this folder")
    options = parser.parse_args(arguments)
    print(json.dumps(facts(options.data, options.directory, options.dataset)), flush=True)
    return 0


def facts(data: str, directory: Path, cache: str | None = None) -> dict[str, Any]:
    """host, node (its number in srun's step), time (seconds since 1970), code and lock (hashes), python, data (whether
    it is there), free_gb at the run's directory, checkpoints (how many that holds), gpus (their names), cores, port (a
    free one); with `cache` dataset (its training table's digest) and images (how many it has)."""
    return {
        "host": socket.gethostname(),
        "node": int(os.environ.get("SLURM_NODEID", "0")),
        "time": time.time(),
        "code": code_digest(ROOT),
        "commit": commit(ROOT),
        "lock": ready_stamp(ROOT),
        "python": platform.python_version(),
        "data": Path(data).exists(),
        "free_gb": free_gb(directory),
        "checkpoints": len(list((directory / "checkpoints").glob("step-*"))),
        "gpus": gpu_names(),
        "cores": len(os.sched_getaffinity(0)),
        "port": free_port(),
    } | (dataset_facts(data, cache) if cache is not None else {})


def code_digest(root: Path) -> str:
    """Digest of all files that a run executes, committed or not: scripts and packages (*.py), and recipes."""
    digest = hashlib.sha256()
    files = [*root.glob("*.py"), *(file for package in packages(root) for file in package.rglob("*.py"))]
    for file in sorted([*files, *(root / "config").rglob("*.yaml")]):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def packages(root: Path) -> list[Path]:
    """The folders in `root` that hold the program: Python packages, without the tests."""
    return sorted(path.parent for path in root.glob("*/__init__.py") if path.parent.name != "tests")


def commit(root: Path) -> str:
    """What git calls the commit of this checkout, "" where there is no git."""
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def ready_stamp(root: Path) -> str:
    """The hash of the lock file that .venv was made from, "" if it is not ready."""
    try:
        return (root / ".venv" / ".swave-ready").read_text().strip()[:12]
    except OSError:
        return ""


def free_gb(directory: Path) -> float:
    """Free disk space where the run's directory is or will be."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    return round(shutil.disk_usage(place).free / 1e9, 1)


def dataset_facts(data: str, cache: str) -> dict[str, Any]:
    """dataset: the digest of the training table, or what is wrong with it; images: its rows, or 0."""
    from pipeline.dataset.open import find_split, open_dataset

    try:
        table = open_dataset(find_split(data)[0], cache, 0, False)
    except (ValueError, OSError) as error:
        return {"dataset": f"unreadable: {' '.join(str(error).split())}", "images": 0}
    return {"dataset": table.digest()[:12], "images": len(table)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
