"""Prints the facts of a node before a run as one line of JSON. `launch.preflight` runs it on every node.

    python -m launch.node_facts DATA_PATH RUN_DIRECTORY [--dataset CACHE] [--image NAME] [--label NAME]
    python -m launch.node_facts --port

It imports nothing heavy, so that it answers within a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.cli import Parser
from common.machine import gpu_names, visible_gpu_names
from config.recipe import ROOT
from training.distributed import free_port


def main(arguments: list[str]) -> int:
    parser = Parser(prog="python -m launch.node_facts", description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default=".", help="data.path")
    parser.add_argument("directory", nargs="?", default=".", type=Path, help="run.directory")
    parser.add_argument("--and", action="append", default=[], dest="more", help="a further path of data.path")
    parser.add_argument("--dataset", metavar="CACHE", help="read the dataset too; its table is kept in this folder")
    parser.add_argument("--cache-bytes", default="100GB", help="data.cache_bytes")
    parser.add_argument("--image", help="data.image")
    parser.add_argument("--label", help="data.label")
    parser.add_argument("--channels", default="auto", help="data.channels")
    parser.add_argument("--layout", default="auto", help="data.layout")
    parser.add_argument("--bands", help="data.bands")
    parser.add_argument("--check", default="decode", help="data.check")
    parser.add_argument("--port", action="store_true", help="print only the node's number and a free port")
    options = parser.parse_args(arguments)
    if options.port:
        facts = gather_port()
    else:
        channels = int(options.channels) if options.channels.isdecimal() else options.channels
        choice = {
            "image": options.image, "label": options.label, "channels": channels, "layout": options.layout,
            "bands": options.bands,
        }  # fmt: skip
        paths = [options.data, *options.more]
        facts = gather_facts(paths, options.directory, options.dataset, choice, options.check, options.cache_bytes)
    print(json.dumps(facts), flush=True)
    return 0


def gather_port() -> dict[str, Any]:
    """node: its number in srun's step. time: seconds since 1970. port: a free TCP port."""
    return {"node": int(os.environ.get("SLURM_NODEID", "0")), "time": time.time(), "port": free_port()}


def gather_facts(
    paths: list[str],
    directory: Path,
    cache: str | None = None,
    choice: Mapping[str, Any] | None = None,
    check: str = "decode",
    cache_bytes: str = "100GB",
) -> dict[str, Any]:
    """This machine's facts.

    host; node and time, see `gather_port`; code and lock: digests; commit; python: its version; data: whether all
    paths exist; free_gb: at the run's directory; checkpoints: how many that holds; gpus: names of visible ones; cores.
    With `cache` also dataset: the digests of the training tables, and images: how many rows they have. choice:
    data.image, data.label, data.channels, data.layout and data.bands. check: data.check. cache_bytes: data.cache_bytes.
    """
    return {
        "host": socket.gethostname(),
        "node": int(os.environ.get("SLURM_NODEID", "0")),
        "time": time.time(),
        "code": code_digest(ROOT),
        "commit": commit(ROOT),
        "lock": ready_stamp(ROOT),
        "python": platform.python_version(),
        "data": all(map(_is_there, paths)),
        "free_gb": free_gb(directory),
        "checkpoints": len(list((directory / "checkpoints").glob("step-*"))),
        "gpus": visible_gpu_names(gpu_names(), os.environ),
        "cores": len(os.sched_getaffinity(0)),
    } | (dataset_facts(paths, cache, choice, check, cache_bytes) if cache is not None else {})


def _is_there(path: str) -> bool:
    return "://" in path or Path(path).exists() or ("*" in path and Path(path).parent.is_dir())


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
    """Short hash of the checkout's commit, "" without git."""
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def ready_stamp(root: Path) -> str:
    """Digest of the lock file from which .venv was made, "" if .venv is not ready."""
    try:
        return (root / ".venv" / ".swave-ready").read_text().strip()[:12]
    except OSError:
        return ""


def free_gb(directory: Path) -> float:
    """Free disk space in GB where `directory` is or will be."""
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    return round(shutil.disk_usage(existing).free / 1e9, 1)


def dataset_facts(
    paths: list[str], cache: str, choice: Mapping[str, Any] | None, check: str, cache_bytes: str
) -> dict[str, Any]:
    """dataset: digests of the training tables, or "unreadable: " and the reason. images: rows, 0 if unreadable."""
    from pipeline.dataset.finding.choice import Choice
    from pipeline.dataset.open import find_split, open_dataset
    from pipeline.remote.mirror import with_local_paths

    try:
        tables = []
        for given in paths:
            place = {"path": given, "test": None, "cache": cache, "cache_bytes": cache_bytes, "workers": 0}
            place["check"] = check
            path = with_local_paths(place, progress=False)["path"]
            chosen = Choice(**(choice or {}))
            tables.append(open_dataset(find_split(path)[0], cache, 0, False, choice=chosen, check=check))
    except (ValueError, OSError) as error:
        return {"dataset": f"unreadable: {' '.join(str(error).split())}", "images": 0}
    digests = [table.digest()[:12] for table in tables]
    return {"dataset": " ".join(digests), "images": sum(map(len, tables))}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
