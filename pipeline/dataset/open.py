"""From `data.path` to its sample table: one that was packed with the data, one from the cache, or a new scan."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from common.cli import note
from common.files import lock
from pipeline.dataset.beton import converted_table, read_beton, scan_beton
from pipeline.dataset.folder import list_folder, scan_folder
from pipeline.dataset.shards import list_shards, scan_shards
from pipeline.dataset.sniff import EXTENSIONS
from pipeline.dataset.table import DatasetError, SampleTable, count_reasons

__all__ = ["DatasetError", "find_split", "open_dataset", "open_splits"]

KINDS = "give a folder of images or of *.tar shards, a .tar, a .beton, or the output of `make convert`"


def open_dataset(
    path: str | Path,
    cache: str | Path,
    workers: int | None = None,
    progress: bool = True,
    setting: str = "data.path",
) -> SampleTable:
    """The sample table of `path`: a folder with `table.npz`, with *.tar or with images (tried in this order), a .tar, a
    .beton (its table may be in the same folder: `train.npz` for `train.beton`), or a table itself (`x.npz`).

    A scanned table is stored as `<cache>/<name>-<hash of the path>.npz`, and made again when a file is added, removed
    or changed. If several processes open the same path, the first scans and the others wait. workers: processes that
    decode (default: the CPUs that this process may use). Messages on stderr are one line each and name `setting`.
    Raises DatasetError with one line.
    """
    source = Path(path).absolute()
    workers = workers or len(os.sched_getaffinity(0))
    try:
        table = _open(source, Path(cache), workers, progress, setting)
        if not len(table):
            raise DatasetError(_no_images(source))
        if not len(table.usable()):
            problem = f"none of the {len(table)} images can be read ({count_reasons(table.quarantine)})"
            raise DatasetError(f"{problem}; give a folder whose images open in a viewer")
    except DatasetError as error:
        raise DatasetError(f"{setting}={path}: {error}") from None
    except OSError as error:
        raise DatasetError(f"{setting}={path}: {error.strerror or error} ({error.filename}); {KINDS}") from None
    return table


def open_splits(data: Any, progress: bool = True) -> tuple[SampleTable, SampleTable | None]:
    """Training and test table of a recipe's `data` section: path, test (or None), cache, workers (0: one per core).

    If `data.test` is not set, the test set is what `find_split` finds; None if there is none. Raises DatasetError.
    """
    train, neighbor = find_split(data.path)
    table = open_dataset(train, data.cache, data.workers, progress)
    test = data.test or neighbor
    if test is None:
        return table, None
    return table, same_classes(table, open_dataset(test, data.cache, data.workers, progress, "data.test"), test)


def same_classes(train: SampleTable, test: SampleTable, name: object) -> SampleTable:
    """The test table with the class numbers of the training set, if both have class names.

    Raises DatasetError for a test class that the training set does not have.
    """
    if not train.classes or not test.classes or train.classes == test.classes:
        return test
    used = set(np.unique(test.label[test.label >= 0]).tolist())
    unknown = [test.classes[label] for label in sorted(used) if test.classes[label] not in train.classes]
    if unknown:
        raise DatasetError(f"data.test={name}: its class {unknown[0]!r} is not in the training set; remove the folder")
    number = {name: index for index, name in enumerate(train.classes)}
    numbers = np.array([number.get(name, -1) for name in test.classes] + [-1])  # the last is for label -1
    return replace(test, label=numbers[test.label].astype(np.int32), classes=train.classes)


def find_split(path: str | Path) -> tuple[Path, Path | None]:
    """Training and test path: (`path/train`, the first of `path/val`, `path/test`, `path/validation`), or (path, None).

    `train.beton` counts like a folder `train`, with or without a test file. A folder `train` without a test folder
    counts only if it is the only folder in `path`.
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
    """The table that conversion wrote for the file, if it still fits; else one from the cache or a scan."""
    beton = read_beton(source)
    table = converted_table(beton)
    if table is not None:
        return table
    if source.with_suffix(".npz").exists():
        note(f"{setting}={source}: {source.stem}.npz is not the table of this file; scanning it instead")
    return _cached(source, cache, setting, lambda: beton, lambda beton: scan_beton(beton, workers, progress))


class Fingerprinted(Protocol):
    """The listing of a source, known before its images are decoded."""

    def fingerprint(self) -> str: ...


ListingType = TypeVar("ListingType", bound=Fingerprinted)


def _cached(
    source: Path,
    cache: Path,
    setting: str,
    list_source: Callable[[], ListingType],
    scan: Callable[[ListingType], SampleTable],
) -> SampleTable:
    """The cached table if it fits the listing, else that of a new scan. One process at a time."""
    stem = f"{source.name or 'root'}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:12]}"
    file = cache / f"{stem}.npz"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        before = _stamp(cache / f"{stem}.lock")
        stamp = lock(cache / f"{stem}.lock")
    except OSError as error:
        raise _no_cache(cache, error) from None
    with stamp:
        # The ranks of a node start together: if another one finished while this one waited, its table is up to date.
        table = _fresh(file, None, f"{setting}={source}") if _stamp(Path(stamp.name)) != before else None
        if table is not None:
            return table
        listing = list_source()
        table = _fresh(file, listing, f"{setting}={source}")
        if table is None:
            table = scan(listing)
            try:
                table.save(file)
            except OSError as error:
                raise _no_cache(cache, error) from None
            if table.quarantine:
                reasons = count_reasons(table.quarantine)
                summary = f"{len(table.quarantine)} of {len(table)} images quarantined ({reasons})"
                note(f"{setting}={source}: {summary}; their names are in {file.with_suffix('.json')}")
        with suppress(OSError):  # a full disk costs the other ranks a listing
            stamp.truncate(0)
            stamp.write(uuid.uuid4().hex)
            stamp.flush()
        return table


def _stamp(file: Path) -> bytes:
    """What the last process that had a table to itself left in the lock file: random, as clocks go back."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _no_cache(cache: Path, error: OSError) -> DatasetError:
    return DatasetError(f"cannot write its table to the cache {cache} ({error.strerror}); set another")


def _fresh(file: Path, listing: Fingerprinted | None, what: str) -> SampleTable | None:
    """The cached table; None, after a line on stderr, if it cannot be used. listing: which it must fit, if any."""
    if not file.exists():
        return None
    try:
        table = SampleTable.load(file)
    except DatasetError as error:
        note(f"{what}: scanning again ({error})")
        return None
    if listing is not None and table.fingerprint != listing.fingerprint():
        note(f"{what}: scanning again, the files changed since {file} was written")
        return None
    return table


def _checked(table: SampleTable) -> SampleTable:
    """The table, if every shard exists and reaches to the end of its last image. Raises DatasetError otherwise."""
    if table.loose:
        return table
    ends = np.zeros(len(table.containers), np.int64)
    np.maximum.at(ends, table.container, table.offset + table.length)
    for name, end in zip(table.containers, ends, strict=True):
        shard = table.root / name
        if not shard.exists():
            raise DatasetError(f"table.npz lists {name}, which is missing; copy it back or pack again")
        if shard.stat().st_size < end:
            problem = f"{name} has {shard.stat().st_size} bytes, its images need {end}"
            raise DatasetError(f"{problem}; copy it back or pack again")
    return table


def _no_images(source: Path) -> str:
    where = "in this tar" if source.is_file() else "found"
    return f"no images {where} (looked for {' '.join(EXTENSIONS)}; only `make convert` reads other extensions); {KINDS}"
