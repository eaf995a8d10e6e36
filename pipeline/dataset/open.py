"""From `data.path` to its sample table: one that was packed with the data, one from the cache, or a new scan."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from common.cli import note
from common.files import lock
from pipeline.dataset.accounting import accounting, in_one_line
from pipeline.dataset.beton import converted_table, read_beton, scan_beton
from pipeline.dataset.columns import MAPPED_FROM
from pipeline.dataset.finding.ambiguous import check_folder, classes_in_doubt
from pipeline.dataset.finding.choice import NONE as NO_LABELS
from pipeline.dataset.finding.choice import (
    NOT_CHOSEN,
    Choice,
    check_bands,
    check_channels,
    check_choice,
    check_pages,
    check_pixels,
    chosen_words,
)
from pipeline.dataset.finding.find import RECORDS, find_source, left_out_beside, sources_below
from pipeline.dataset.finding.layout import find_split, unused
from pipeline.dataset.folder import images_of, list_folder, scan_folder
from pipeline.dataset.inside.scan import scan_hdf5
from pipeline.dataset.records.images import scan_records
from pipeline.dataset.shards import scan_shards
from pipeline.dataset.sniff import EXTENSIONS, has_extension
from pipeline.dataset.stretching import stretched
from pipeline.dataset.table import DECODE, HEADERS, NONE, DatasetError, SampleTable, count_reasons
from pipeline.dataset.tar_images import list_shards
from pipeline.mixing.joint import joint_table
from pipeline.mixing.mixture import mixture_of
from pipeline.mixing.splits import check_apart, same_classes
from pipeline.remote.mirror import with_local_paths
from pipeline.remote.probes import shard_digests

__all__ = ["DatasetError", "choice_of", "find_split", "open_dataset", "open_splits"]

COLLECTIONS = ("fashion-mnist", "openclipart", "emoji")  # of `make data`
KINDS = (
    "give a folder of images, *.tar, *.tfrecord, *.rec, *.mds or *.h5, one such file, a folder of LitData or LMDB, "
    "a .beton, or the output of `make convert`"
)


class Place(NamedTuple):
    """Where a dataset is and how it is opened: see `open_dataset`."""

    source: Path
    cache: Path
    workers: int
    progress: bool
    setting: str
    choice: Choice
    check: str

    @property
    def scanned_by(self) -> str:
        """What a scan does with each image: see `SampleTable.check`."""
        return DECODE if self.check == DECODE else HEADERS


def open_dataset(
    path: str | Path,
    cache: str | Path,
    workers: int | None = None,
    progress: bool = True,
    setting: str = "data.path",
    choice: Choice = NOT_CHOSEN,
    say: bool = True,
    check: str = DECODE,
) -> SampleTable:
    """The sample table of `path`: a folder with `table.npz`, with *.tar or with images, a pattern of tars, a .tar, a
    .beton (its table may be in the same folder: `train.npz` for `train.beton`), or a table itself (`x.npz`).

    A scanned table is stored as `<cache>/<name>-<hash of the path>.npz`, and made again when a file is added, removed
    or changed. If several processes open the same path, the first scans and the others wait. workers: processes that
    scan (default: the CPUs that this process may use). choice: of images and labels, where samples have several. check:
    see `SampleTable`; scans that decode have a table of their own in the cache, so that each `check` always finds the
    same rows. progress: bars, and with `say` one line that says what became of all files. Messages on stderr are one
    line each and name `setting`. Raises DatasetError with one line.
    """
    workers = workers or len(os.sched_getaffinity(0))
    place = Place(Path(path).absolute(), Path(cache), workers, progress, setting, choice, check)
    try:
        table, file = _open(place)
        table = table.without_larger(choice.max_pixels)
        if choice.label == NO_LABELS:
            table = replace(table, label=np.full(len(table), -1), classes=())
        if not len(table):
            raise DatasetError(_no_images(place.source, table))
        if check == NONE and table.check == HEADERS:
            table = replace(table, check=NONE)
        if not table.images:
            problem = f"none of the {len(table)} images can be read ({count_reasons(table.quarantine)})"
            raise DatasetError(f"{problem}; give a folder whose images open in a viewer")
        check_pixels(table.pixels, choice)
    except DatasetError as error:
        message = str(error).replace("data.path=", f"{setting}=")
        raise DatasetError(f"{setting}={path}: {message}") from None
    except OSError as error:
        raise DatasetError(f"{setting}={path}: {error.strerror or error} ({error.filename}); {KINDS}") from None
    if progress and say:
        kind = f"{table.pixels}; " if table.pixels.native else ""
        note(f"{setting}={path}: {kind}{in_one_line(accounting(table), str(file.with_suffix('.json')))}")
        if table.loose and (doubt := classes_in_doubt(table.root, table.containers, table.classes)):
            note(f"{setting}={path}: {doubt}".replace("data.path=", f"{setting}="))
    return table


def choice_of(data: Any) -> Choice:
    """The choice that a recipe's `data` section makes."""
    known = {key: data.get(key) for key in Choice._fields if data.get(key) is not None}
    return Choice(**known)


def open_splits(data: Any, progress: bool = True, say: bool = True) -> tuple[SampleTable, SampleTable | None]:
    """Training and test table of a recipe's `data` section: path, test (or None), cache, workers (0: one per core),
    image, label, bands (or None), pages, check, channels, layout, max_pixels, stretch and range.

    If `data.test` is not set, the test set is what `find_split` finds; None if there is none. progress, say: as for
    `open_dataset`. Raises DatasetError, also if an image is in both. An address (s3://, gs://, https://) is fetched to
    `data.cache` first.
    """
    several = not isinstance(data.path, str | Path)
    table, test = _open_several(data, progress, say) if several else _open_one(data, progress, say)
    mixture = mixture_of(table, data.get("weights"), data.get("balance") or "none")
    for line in mixture.lines(table) if mixture is not None and progress and say else ():
        note(line)
    return table, test


def _open_one(data: Any, progress: bool, say: bool) -> tuple[SampleTable, SampleTable | None]:
    """As `open_splits`, of one path."""
    data = with_local_paths(data, progress)
    check = data.get("check") or DECODE
    try:
        train, neighbor = find_split(data.path)
    except DatasetError as error:
        raise DatasetError(f"data.path={data.path}: {error}") from None
    test = data.test or neighbor
    if test is not None and Path(test).resolve() == Path(train).resolve():
        problem = "the same images as data.path, so every test image would be one to learn from"
        raise DatasetError(f"data.test={test}: {problem}; leave data.test out to hold out a tenth")
    table = open_dataset(train, data.cache, data.workers, progress, "data.path", choice_of(data), say, check)
    if progress and say and (names := unused(data.path, train, neighbor)):
        note(f"data.path={data.path}: splits and folders that are not used: {', '.join(names)}")
    table = _stretched(table, data, progress)
    if test is None:
        return table, None
    return table, _open_test(data, table, test, progress, say)


def _open_several(data: Any, progress: bool, say: bool) -> tuple[SampleTable, SampleTable | None]:
    """As `open_splits`, of the training images of each path in `data.path`; the test images are those of data.test."""
    paths, tables, check = list(data.path), [], data.get("check") or DECODE
    for path in paths:
        one: Any = with_local_paths(OmegaConf.create({**data, "path": path, "test": None}), progress)
        try:
            train = find_split(one.path)[0]
        except DatasetError as error:
            raise DatasetError(f"data.path={path}: {error}") from None
        tables.append(open_dataset(train, data.cache, data.workers, progress, "data.path", choice_of(data), say, check))
        if progress and say and (names := unused(one.path, train, None)):
            note(f"data.path={path}: splits and folders that are not used: {', '.join(names)}")
    table = _stretched(joint_table(tables, paths), data, progress)
    if data.get("test") is None:
        return table, None
    tested = with_local_paths(OmegaConf.create({**data, "path": paths[0]}), progress)
    return table, _open_test(tested, table, tested.test, progress, say)


def _stretched(table: SampleTable, data: Any, progress: bool) -> SampleTable:
    """The training table with the range that `data.stretch` asks for."""
    if not data.get("stretch"):
        return table
    given, cache, workers = data.get("range") or "auto", Path(data.cache), data.get("workers") or 0
    return stretched(table, data.stretch, given, cache, workers, progress)


def _open_test(data: Any, table: SampleTable, test: Any, progress: bool, say: bool) -> SampleTable:
    """The test images, apart from those of `table` and with its classes."""
    check = data.get("check") or DECODE
    other = open_dataset(test, data.cache, data.workers, progress, "data.test", choice_of(data), say, check)
    check_apart(table, other, test)
    if other.pixels.kind != table.pixels.kind:
        problem = f"holds images of {other.pixels}, and data.path of {table.pixels}"
        raise DatasetError(f"data.test={test}: {problem}; give both with data.channels and data.layout")
    other = replace(other, pixels=replace(other.pixels, range=table.pixels.range))
    return same_classes(table, other, test)


def _open(place: Place) -> tuple[SampleTable, Path]:
    """The table, and the file that holds it."""
    source = place.source
    named = source.parts[-2:-1] == ("data",) and source.name in COLLECTIONS
    demo = f"`make data NAME={source.name}` fetches it, or " if named else ""
    kind, files = find_source(source, f"{demo}{KINDS}")
    if place.setting != "data.test":
        check_choice(kind, place.choice)
    check_channels(kind, place.choice)
    check_bands(kind, place.choice)
    check_pages(kind, place.choice)
    if kind == "table":
        table = _checked(SampleTable.load(files[0]))
        if source.is_dir() and not table.loose and table.root == source.resolve():
            used = [*files, *(source / name for name in table.containers)]
            table = _with_left_out(table, files[0], left_out_beside(source, used))
        return _with_left_out(table, files[0], Counter()), files[0]
    if kind == "beton":
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise DatasetError(f"holds {len(files)} *.beton ({names}); name one of them")
        table, file = _open_beton(place, files[0])
        return _with_left_out(table, file, left_out_beside(source, files)), file
    if kind in ("tar", "hdf5", *RECORDS):
        table, file = _cached(place, partial(_see_shards, place, kind, files))
        return _with_left_out(table, file, left_out_beside(source, files)), file
    if kind == "folder":
        return _cached(place, partial(_see_folder, place))
    if kind:
        advice = f"make convert SRC={source} OUT=train.beton FORMAT=beton"
        raise DatasetError(f"holds {kind} files, which only `make convert` reads; give what {advice} makes")
    raise DatasetError(f"neither a folder nor a .tar, .beton or .npz; {KINDS}")


def _with_left_out(table: SampleTable, file: Path, more: Counter[str]) -> SampleTable:
    """The table with `more` files left out. For a table of version 1 the report of its conversion is read."""
    counts = table.left_out
    if counts is None:
        report = file.with_name("report.json" if file.stem == "table" else f"{file.stem}.report.json")
        try:
            told = json.loads(report.read_text())
            lost = {} if table.quarantine else Counter(told["quarantined"].values())
            counts = dict(Counter(told["left_out"]) + Counter(told["refused"].values()) + Counter(lost))
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            return table
    return replace(table, left_out=dict((Counter(counts) + more).most_common()))


def _open_beton(place: Place, path: Path) -> tuple[SampleTable, Path]:
    """The table that conversion wrote for the file, if it still fits; else one from the cache or a scan."""
    beton = read_beton(path, place.choice)
    table = converted_table(beton, place.choice.label != NO_LABELS)
    if table is not None:
        return table, path.with_suffix(".npz")
    if path.with_suffix(".npz").exists():
        note(f"{place.setting}={path}: {path.stem}.npz is not the table of this file; scanning it instead")

    def scan() -> SampleTable:
        return scan_beton(beton, place.workers, place.progress, place.scanned_by, place.choice)

    return _cached(place, lambda cached: Seen(beton.digest, scan))


# ---------------------------------------------------------------------------------------------- scans and their cache


class Seen(NamedTuple):
    """A source before its images are decoded. fingerprint: changes with its images; scan: makes the table.
    others: see `SampleTable`; left_out: None if only the scan finds that out."""

    fingerprint: str
    scan: Callable[[], SampleTable]
    others: str = ""
    left_out: dict[str, int] | None = None


def _see_folder(place: Place, cached: SampleTable | None) -> Seen:
    root = place.source.resolve()
    known = ("", frozenset[str]())
    if cached is not None and cached.others:
        known = cached.others, frozenset(name for name in cached.files() if not has_extension(name))
    images = images_of(root, list_folder(root, place.progress, place.cache), place.choice, known)

    def scan() -> SampleTable:
        check_folder(root, images, place.choice)
        return scan_folder(root, place.workers, place.progress, images, place.scanned_by, place.cache, place.choice)

    return Seen(images.fingerprint(), scan, images.others, images.left_out)


def _see_shards(place: Place, kind: str, files: Sequence[Path], cached: SampleTable | None) -> Seen:
    listed = list_shards(files)

    def scan() -> SampleTable:
        if kind == "tar":
            return scan_shards(files, place.workers, place.progress, listed, place.choice, place.scanned_by)
        if kind == "hdf5":
            return scan_hdf5(listed, place.workers, place.progress, place.choice, place.scanned_by)
        return scan_records(kind, listed, place.workers, place.progress, place.choice, place.scanned_by)

    return Seen(listed[1].fingerprint(), scan)


def _cached(place: Place, see: Callable[[SampleTable | None], Seen]) -> tuple[SampleTable, Path]:
    """The cached table if it fits the source, else that of a new scan; and its file. One process at a time."""
    chosen = chosen_words(place.choice).encode()
    chosen += place.scanned_by.encode() if place.scanned_by != DECODE else b""
    name = place.source.name.replace("*", "_") or "root"
    stem = f"{name}-{hashlib.sha256(os.fsencode(place.source) + chosen).hexdigest()[:12]}"
    file, what = place.cache / f"{stem}.npz", f"{place.setting}={place.source}"
    try:
        place.cache.mkdir(parents=True, exist_ok=True)
        before = _stamp(place.cache / f"{stem}.lock")
        stamp = lock(place.cache / f"{stem}.lock")
    except OSError as error:
        raise _no_cache(place.cache, error) from None
    with stamp:
        table = _stored(file, what)
        # The ranks of a node start together: if another one finished while this one waited, its table is up to date.
        if table is not None and _stamp(Path(stamp.name)) != before:
            return table, file
        seen = see(table)
        if table is not None and table.fingerprint != seen.fingerprint:
            note(f"{what}: scanning again, the files changed since {file} was written")
            table = None
        if table is None:
            table = seen.scan()
            try:
                table.save(file, shard_digests(table.root, table.containers))
            except OSError as error:
                raise _no_cache(place.cache, error) from None
            if file.stat().st_size >= MAPPED_FROM:
                table = SampleTable.load(file)  # in memory that all processes share
        elif seen.left_out is not None and (table.others, table.left_out) != (seen.others, seen.left_out):
            table = replace(table, others=seen.others, left_out=seen.left_out)
            with suppress(OSError):  # a full disk costs the next start a look into the other files
                table.save(file)
        with suppress(OSError):  # a full disk costs the other ranks a listing
            stamp.truncate(0)
            stamp.write(uuid.uuid4().hex)
            stamp.flush()
        return table, file


def _stamp(file: Path) -> bytes:
    """What the last process that had a table to itself left in the lock file: random, as clocks go back."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _no_cache(cache: Path, error: OSError) -> DatasetError:
    return DatasetError(f"cannot write its table to the cache {cache} ({error.strerror}); set another")


def _stored(file: Path, what: str) -> SampleTable | None:
    """The cached table; None, after a line on stderr if there is one that cannot be used."""
    if not file.exists():
        return None
    try:
        table = SampleTable.load(file)
    except DatasetError as error:
        note(f"{what}: scanning again ({error})")
        return None
    if table.left_out is None:
        note(f"{what}: scanning again ({file} is of an older version, which did not count the files left out)")
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


def _no_images(source: Path, table: SampleTable) -> str:
    where = "in this tar" if source.is_file() else "found"
    looked = f"looked for {' '.join(EXTENSIONS)}, and at the first bytes of other files"
    lost = in_one_line(accounting(table)).partition("; ")[2]
    return f"no images {where} ({looked}); {lost}{sources_below(source)}; {KINDS}"
