"""From `data.path` to a sample table, by the shortest way: one that is there, one that was cached, or a
scan."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from common.files import lock
from pipeline.dataset.beton import read_beton, scan_beton, table_beside
from pipeline.dataset.folder import list_folder, scan_folder
from pipeline.dataset.shards import list_shards, scan_shards
from pipeline.dataset.sniff import EXTENSIONS
from pipeline.dataset.table import DatasetError, SampleTable

__all__ = ["DatasetError", "find_split", "open_dataset", "open_splits"]

KINDS = "give a folder of images or of *.tar shards, a .tar, a .beton, or what `make convert` made"


def open_dataset(
    path: str | Path,
    cache: str | Path,
    workers: int | None = None,
    progress: bool = True,
    setting: str = "data.path",
) -> SampleTable:
    """The sample table of `path`: a folder with `table.npz`, of *.tar or of images (looked for in this
    order), a .tar, a .beton (whose table may lie beside it: `train.beton`, `train.npz`) or a table by itself
    (`x.npz`).

    A scanned table is kept as `<cache>/<name>-<hash of the path>.npz` and made anew when a file came, went or
    changed. Processes that ask at once wait for the first of them, which does the work. `workers`: processes
    that decode (default: the CPUs this process may use). Messages go to stderr, a line each, and name
    `setting`. Raises DatasetError with one line.
    """
    source = Path(path).absolute()
    workers = workers or len(os.sched_getaffinity(0))
    try:
        table = _open(source, Path(cache), workers, progress, setting)
        if not len(table):
            raise DatasetError(_nothing_found(source))
        if not len(table.usable()):
            told = f"none of the {len(table)} images can be read ({reasons(table)})"
            raise DatasetError(f"{told}; give a folder whose images open in a viewer")
    except DatasetError as error:
        raise DatasetError(f"{setting}={path}: {error}") from None
    except OSError as error:
        told = f"{error.strerror or error} ({error.filename})"
        raise DatasetError(f"{setting}={path}: {told}; {KINDS}") from None
    return table


def open_splits(data: Any, progress: bool = True) -> tuple[SampleTable, SampleTable | None]:
    """Training and test table of a recipe's `data` section: path, test (or None), cache, workers (0: one a
    core).

    Without `data.test` a `val` or `test` folder beside `train` is the test, if there is one. Raises
    DatasetError.
    """
    train, beside = find_split(data.path)
    table = open_dataset(train, data.cache, data.workers, progress)
    test = data.test or beside
    if test is None:
        return table, None
    return table, same_classes(table, open_dataset(test, data.cache, data.workers, progress, "data.test"), test)


def same_classes(train: SampleTable, test: SampleTable, name: object) -> SampleTable:
    """The test table with the training set's class numbers, where both have class names (sub-folders). Raises
    DatasetError for a class that the training set has no folder of."""
    if not train.classes or not test.classes or train.classes == test.classes:
        return test
    used = set(np.unique(test.label[test.label >= 0]).tolist())
    unknown = [test.classes[label] for label in sorted(used) if test.classes[label] not in train.classes]
    if unknown:
        raise DatasetError(f"data.test={name}: no training image is of its class {unknown[0]!r}; take the folder out")
    number = {name: index for index, name in enumerate(train.classes)}
    numbers = np.array([number.get(name, -1) for name in test.classes] + [-1])  # the last is for label -1
    return replace(test, label=numbers[test.label].astype(np.int32), classes=train.classes)


def find_split(path: str | Path) -> tuple[Path, Path | None]:
    """`path/train` and the first of `val`, `test`, `validation` beside it; `(path, None)` without such a
    pair. So also `train.beton`, with `val.beton` and so on, or alone.

    A folder `train` that has no other folder beside it counts as the training half alone.
    """
    path = Path(path)
    if (path / "train.beton").is_file():
        tests = (path / f"{name}.beton" for name in ("val", "test", "validation"))
        return path / "train.beton", next((file for file in tests if file.is_file()), None)
    if (path / "train").is_dir():
        for name in ("val", "test", "validation"):
            if (path / name).is_dir():
                return path / "train", path / name
        if [entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."] == ["train"]:
            return path / "train", None
    return path, None


def reasons(table: SampleTable) -> str:
    """The quarantine in a few words: '2 truncated, 1 zero bytes'."""
    counts = Counter(table.quarantine.values()).most_common()
    return ", ".join(f"{count} {reason}" for reason, count in counts)


def _open(source: Path, cache: Path, workers: int, progress: bool, setting: str) -> SampleTable:
    if not source.exists():
        demo = "`make data` fetches it, or " if source.parts[-2:] == ("data", "fashion-mnist") else ""
        raise DatasetError(f"no such file or folder; {demo}{KINDS}")
    if source.is_file():
        if source.suffix.lower() == ".beton":
            return _open_beton(source, cache, workers, progress, setting)
        if source.suffix.lower() == ".npz":
            return _checked(SampleTable.load(source))
        if source.suffix.lower() != ".tar":
            raise DatasetError(f"neither a folder nor a .tar, .beton or .npz; {KINDS}")
        shards = [source]
    elif (source / "table.npz").exists():
        return _checked(SampleTable.load(source / "table.npz"))
    else:
        shards = [entry for entry in source.iterdir() if entry.suffix.lower() == ".tar" and entry.is_file()]
    if shards:
        root = list_shards(shards)[0]
        return _cached(
            source, cache, setting, lambda: list_shards(shards)[1],
            lambda listing: scan_shards(shards, workers, progress, (root, listing)),
        )  # fmt: skip
    return _cached(
        source, cache, setting, lambda: list_folder(source.resolve(), progress=progress),
        lambda listing: scan_folder(source, workers, progress, listing),
    )  # fmt: skip


def _open_beton(source: Path, cache: Path, workers: int, progress: bool, setting: str) -> SampleTable:
    """The table beside the file, if it was made of this very file; else one from the cache or a scan."""
    found = read_beton(source)
    table = table_beside(found)
    if table is not None:
        return table
    if source.with_suffix(".npz").exists():
        _say(f"{setting}={source}: {source.stem}.npz beside it is not its table; taking one from a scan")
    return _cached(
        source, cache, setting, lambda: found,
        lambda found: scan_beton(found, workers, progress),
    )  # fmt: skip


class Fingerprinted(Protocol):
    """What is known of a source before it is decoded."""

    def fingerprint(self) -> str: ...


Known = TypeVar("Known", bound=Fingerprinted)


def _cached(
    source: Path,
    cache: Path,
    setting: str,
    look: Callable[[], Known],
    scan: Callable[[Known], SampleTable],
) -> SampleTable:
    """The cached table if it is of this listing, else a new scan. One process at a time."""
    asked = time.time()
    stem = f"{source.name or 'root'}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:12]}"
    file = cache / f"{stem}.npz"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        stamp = lock(cache / f"{stem}.lock")
    except OSError as error:
        told = f"cannot write its table to the cache {cache} ({error.strerror})"
        raise DatasetError(f"{told}; set another") from None
    try:
        stamp.seek(0)
        # The ranks of a node start together: what one listed while the others waited needs no second look.
        if float(stamp.read() or 0) >= asked and file.exists():
            return SampleTable.load(file)
        listing = look()
        table = _fresh(file, listing, f"{setting}={source}")
        if table is None:
            table = scan(listing)
            table.save(file)
            if table.quarantine:
                told = f"{len(table.quarantine)} of {len(table)} images quarantined ({reasons(table)})"
                _say(f"{setting}={source}: {told}; their names are in {file.with_suffix('.json')}")
        stamp.truncate(0)
        stamp.write(str(time.time()))
        return table
    finally:
        stamp.close()


def _fresh(file: Path, listing: Fingerprinted, what: str) -> SampleTable | None:
    """The cached table, or None with a line that says why it is of no use."""
    if not file.exists():
        return None
    try:
        table = SampleTable.load(file)
    except DatasetError as error:
        _say(f"{what}: scanning again ({error})")
        return None
    if table.fingerprint != listing.fingerprint():
        _say(f"{what}: scanning again, the files changed since {file} was written")
        return None
    return table


def _checked(table: SampleTable) -> SampleTable:
    """The table, if every shard is there and reaches as far as its last image."""
    if table.loose:
        return table
    ends = np.zeros(len(table.containers), np.int64)
    np.maximum.at(ends, table.container, table.offset + table.length)
    for name, end in zip(table.containers, ends, strict=True):
        shard = table.root / name
        if not shard.exists():
            raise DatasetError(f"table.npz lists {name}, which is missing; copy it back or pack anew")
        if shard.stat().st_size < end:
            told = f"{name} has {shard.stat().st_size} bytes, its images need {end}"
            raise DatasetError(f"{told}; copy it back or pack anew")
    return table


def _nothing_found(source: Path) -> str:
    where = "in this tar" if source.is_file() else "found"
    return f"no images {where} (looked for {' '.join(EXTENSIONS)}; only `make convert` looks into others); {KINDS}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
