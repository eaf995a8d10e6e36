"""Open Clip Art of 2005, 6,900 color drawings by many hands, by folder of subject (Debian's package openclipart-png).

Symbolic links in the package are other names of the same drawing and are left out. A label is the name of the top
folder; drawings in folders that name no subject, or that have few drawings, have none.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

from pipeline.collections.drawings import Drawing, pack_drawings
from pipeline.collections.packages import Unavailable, from_debian
from pipeline.dataset.table import SampleTable

PACKAGE, BYTES = "openclipart-png", 130_910_028
FOLDER = "usr/share/openclipart/png"  # in the package
SHA256 = "08725bdd22e442c96e60a0e109f16fe788a1982e84cd7a44c764ce68182a5622"  # see `digest`
LICENSE = "public domain (Creative Commons Public Domain Dedication)"
NO_SUBJECT = ("special", "unsorted")
FEWEST = 20  # drawings of a class


def prepare(out: Path, fetched: Path, workers: int, progress: bool) -> dict[str, SampleTable]:
    """Fetch into the folder `fetched`, and pack into `out`. Raises Unavailable, DatasetError."""
    folder = from_debian(PACKAGE, BYTES, fetched, progress) / FOLDER
    files = sorted(path for path in folder.rglob("*.png") if path.is_file() and not path.is_symlink())
    if digest(folder, files) != SHA256:
        raise Unavailable(f"{PACKAGE}: not the drawings of version 0.18 (the SHA-256 of names and contents differs)")
    return pack_drawings(*drawings(folder, files), out, LICENSE, workers, progress)


def digest(folder: Path, files: list[Path]) -> str:
    """Hex SHA-256 of the files' names below `folder` and of their contents. That of the package would change with
    Debian's release."""
    total = hashlib.sha256()
    for path in files:
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def drawings(folder: Path, files: list[Path]) -> tuple[list[Drawing], tuple[str, ...]]:
    """The drawings with their labels, and the classes."""
    tops = [path.relative_to(folder).parts[0] for path in files]
    counts = Counter(tops)
    classes = tuple(sorted(top for top in counts if counts[top] >= FEWEST and top not in NO_SUBJECT))
    return [
        Drawing(path, f"{number:04d}-{slug(path.stem)}", number, classes.index(top) if top in classes else -1)
        for number, (path, top) in enumerate(zip(files, tops, strict=True))
    ], classes


def slug(name: str) -> str:
    """At most 60 letters, digits, - and _ of a name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60]
