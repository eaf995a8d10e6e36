"""The images of any number of record files, with labels numbered over all of them; and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from common.processes import in_processes
from common.progress import progress_bar
from pipeline.dataset.finding.choice import NOT_CHOSEN, Choice
from pipeline.dataset.finding.labels import class_names, numbered
from pipeline.dataset.folder import Listing, probe_encoded
from pipeline.dataset.records.listing import ENCODED, Records
from pipeline.dataset.records.litdata import list_litdata
from pipeline.dataset.records.lmdb import list_lmdb
from pipeline.dataset.records.mds import list_mds
from pipeline.dataset.records.pixels import COLOR
from pipeline.dataset.records.recordio import list_recordio
from pipeline.dataset.records.tfrecord import list_tfrecord
from pipeline.dataset.table import DECODE, DatasetError, SampleTable
from pipeline.remote.probes import kept_probes

LISTERS = {  # by the kind of `find_source`
    "tfrecord": list_tfrecord, "recordio": list_recordio, "mds": list_mds, "litdata": list_litdata, "lmdb": list_lmdb,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class RecordImages:
    """N images. file: (N,) int32, the number of the file; offset, length: (N,) int64 bytes; label: (N,) int32, -1
    without; shape: (N, 2) int32 height and width of raw RGB pixels, (0, 0) for an encoded image; keys: their names;
    left_out: number of records that are not taken, by reason. no_range: why images have no byte range, '' if all have
    one."""

    file: Int32[np.ndarray, " n"]
    offset: Int64[np.ndarray, " n"]
    length: Int64[np.ndarray, " n"]
    label: Int32[np.ndarray, " n"]
    shape: Int32[np.ndarray, "n 2"]
    classes: tuple[str, ...]
    keys: list[str]
    left_out: dict[str, int]
    no_range: str


def record_images(
    kind: str, root: Path, names: Sequence[str], choice: Choice, workers: int, progress: bool, setting: str
) -> RecordImages:
    """The images of the files `names` below `root`. kind: a key of LISTERS; setting: the user's name for `workers`.
    Raises DatasetError."""
    paths = [str(root / name) for name in names]
    listed = []
    with progress_bar(len(paths), "listing records", "file", progress and len(paths) > 1) as bar:
        one = partial(LISTERS[kind], choice=choice)
        for records in in_processes(one, iter(paths), min(workers, len(paths)), setting):
            listed.append(records)
            bar.update()
    labels = [label for records in listed for label in records.labels]
    classes = class_names(labels)
    left_out: Counter[str] = sum((records.left_out for records in listed), Counter())
    counts = [len(records.offsets) for records in listed]
    return RecordImages(
        np.repeat(np.arange(len(listed), dtype=np.int32), counts),
        np.array([offset for records in listed for offset in records.offsets], np.int64),
        np.array([length for records in listed for length in records.lengths], np.int64),
        numbered(labels, classes),
        np.array([pixels[:2] for records in listed for pixels in records.pixels], np.int32).reshape(-1, 2),
        classes, [key for records in listed for key in records.keys], dict(left_out.most_common()),
        next((why for name, records in zip(names, listed, strict=True) if (why := _no_range(name, records))), ""),
    )  # fmt: skip


def _no_range(name: str, records: Records) -> str:
    if records.packed:
        return f"{name} is compressed"
    other = next((one.order for one in records.pixels if one.order not in (ENCODED.order, COLOR)), "")
    return f"{name} holds raw pixels ({other})" if other else ""


def scan_records(
    kind: str,
    listing: tuple[Path, Listing],
    workers: int,
    progress: bool,
    choice: Choice = NOT_CHOSEN,
    check: str = DECODE,
) -> SampleTable:
    """The table of the files of `listing` (see `list_shards`), a row per image; checks every image once. check: see
    `SampleTable`."""
    root, files = listing
    images = record_images(kind, root, files.names, choice, workers, progress, "data.workers")
    if images.no_range:
        problem = f"{images.no_range}, so that its images cannot be read in place"
        raise DatasetError(f"{problem}; give what make convert SRC={root} OUT=train.beton FORMAT=beton makes")
    probes = kept_probes(root, files.names, images.file, images.offset) or probe_encoded(
        root, files.names, images.file, images.offset, images.length, images.shape, workers, progress, check, choice
    )
    table = SampleTable(
        root, files.names, images.file, images.offset, label=images.label, classes=images.classes, **probes._asdict()
    )
    return replace(table, check=check, fingerprint=files.fingerprint(), left_out=images.left_out)
