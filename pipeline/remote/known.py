"""Shards whose table lies beside them, as `make convert` writes it. They need no scan: a start fetches none of their
images. These have no checksums: bytes of another length, or that cannot be decoded, are noticed, others are not."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import write_at
from pipeline.dataset.beton import FIELD, FLOAT, HEADER, INT, RECORDS, RGB, converted_table, read_beton
from pipeline.dataset.table import DatasetError, SampleTable
from pipeline.remote.address import RemoteObject
from pipeline.remote.probes import UNKNOWN, ShardProbes
from pipeline.remote.store import Store, read_range

TABLE = "table.npz"


class Known(NamedTuple):
    """What a table says of a shard: its images, and its SHA-256."""

    probes: ShardProbes
    sha256: str


def known_tars(files: Path, tars: Sequence[RemoteObject]) -> dict[str, Known]:
    """The tars that a table in their folder lists with their size, by name. files: the mirror's folder of objects."""
    sizes, found = {item.name: item.size for item in tars}, {}
    for folder in sorted({Path(item.name).parent for item in tars}):
        try:
            table = SampleTable.load(files / folder / TABLE)
        except DatasetError:
            continue
        shards = _manifest(files / folder / TABLE)
        if table.root != (files / folder).resolve() or table.pixels.native:
            continue
        order = np.argsort(table.container, kind="stable")
        ends = np.searchsorted(table.container[order], np.arange(len(table.containers)), side="right")
        for name, rows in zip(table.containers, np.split(order, ends[:-1]), strict=True):
            size, digest = shards.get(name, (-1, ""))
            if sizes.get(str(folder / name)) == size:
                found[str(folder / name)] = Known(_probes(table, rows), digest)
    return found


def known_beton(store: Store, item: RemoteObject, files: Path, skeleton: Path) -> Known | None:
    """The images of a .beton whose table lies beside it, after two requests; None if there is none, or if it does not
    fit. skeleton: gets the file with a hole in place of all pages. Raises Missing, DatasetError."""
    beside = (files / item.name).with_suffix(".npz")
    if not beside.is_file() or item.size < HEADER.itemsize:
        return None
    header = np.frombuffer(read_range(store, item, 0, HEADER.itemsize), HEADER)[0]
    fields, samples, table_at = (int(header[name]) for name in ("num_fields", "num_samples", "alloc_table_ptr"))
    start = HEADER.itemsize + fields * FIELD.itemsize
    if not start <= table_at <= item.size:
        return None
    kinds = np.frombuffer(read_range(store, item, HEADER.itemsize, start), FIELD)["type_id"].tolist()
    if not set(kinds) <= {FLOAT, INT, RGB}:  # the others have values among the images
        return None
    record = np.dtype([(f"f{index}", RECORDS[kind]) for index, kind in enumerate(kinds)], align=True)
    end = start + samples * record.itemsize
    if end > table_at:
        return None
    with skeleton.open("wb") as target:
        os.ftruncate(target.fileno(), item.size)
        for first, last in ((0, end), (table_at, item.size)):
            write_at(target.fileno(), read_range(store, item, first, last), first)
    with TemporaryDirectory(dir=skeleton.parent) as folder:
        place = Path(folder) / Path(item.name).name
        place.symlink_to(skeleton)
        place.with_suffix(".npz").symlink_to(beside)
        try:
            table = converted_table(read_beton(place))
        except DatasetError:
            return None
    digest = _manifest(beside).get(place.name, (-1, ""))[1]
    return None if table is None else Known(_probes(table, np.arange(len(table))), digest)


def _probes(table: SampleTable, rows: NDArray[np.int64]) -> ShardProbes:
    columns = table.offset, table.length, table.width, table.height, table.state
    reasons = {int(table.offset[row]): table.quarantine[row] for row in rows.tolist() if row in table.quarantine}
    crc = np.full(len(rows), UNKNOWN, np.int64)
    arrays: list[Any] = [*(column[rows] for column in columns), crc]
    return ShardProbes._make([*arrays, reasons]).by_offset()


def _manifest(table: Path) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of the shards, by name, from the manifest of a table; {} without."""
    try:
        shards = json.loads(table.with_suffix(".json").read_text())["containers"]
        return {str(one["name"]): (int(one["bytes"]), str(one["sha256"])) for one in shards}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
