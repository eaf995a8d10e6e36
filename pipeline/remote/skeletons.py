"""Scans a tar or .beton once and keeps what a table needs of it: all its bytes but those of the images.

The file that stays, its skeleton, has the size of the shard and holes where the images are. So today's code lists it
like the shard: names, labels, tars in the tar. What needs the images is kept beside it: `pipeline.remote.probes`.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_at
from pipeline.dataset.beton import read_beton, scan_beton
from pipeline.dataset.finding.choice import ALL, NONE, Choice
from pipeline.dataset.shards import scan_shards
from pipeline.dataset.sniff import HEAD
from pipeline.dataset.table import DatasetError
from pipeline.remote.probes import ShardProbes

BETON = ".beton"
PART = 8 << 20


def comes_apart(name: str) -> bool:
    """Whether the images of an object can be fetched one by one, by its name."""
    return name.lower().endswith((".tar", BETON))


def take_apart(shard: Path, name: str, skeleton: Path, workers: int) -> ShardProbes:
    """Decode every image of a tar or .beton with this name, and write its skeleton. Raises DatasetError for a damaged
    one, and for a .beton with several fields of images."""
    if name.lower().endswith(BETON):
        table = scan_beton(read_beton(shard, Choice(label=NONE)), workers, progress=False)
    else:
        table = scan_shards([shard], workers, progress=False, choice=Choice(ALL, NONE))
    if table.pixels.native:
        problem = f"images with {table.pixels} are not fetched one by one"
        raise DatasetError(f"{problem}; raise data.cache_bytes above the size of all shards")
    order = np.argsort(table.offset, kind="stable")
    crc = np.zeros(len(table), np.uint32)
    with shard.open("rb") as source, skeleton.open("wb") as target:
        size = os.fstat(source.fileno()).st_size
        os.ftruncate(target.fileno(), size)
        at = 0
        for row in order.tolist():
            start, length = int(table.offset[row]), int(table.length[row])
            _copy(source.fileno(), target.fileno(), at, start + min(length, HEAD))  # the head says that it is an image
            crc[row] = zlib.crc32(os.pread(source.fileno(), length, start))
            at = max(at, start + length)
        _copy(source.fileno(), target.fileno(), at, size)
    reasons = {int(table.offset[row]): reason for row, reason in table.quarantine.items()}
    columns: list[Any] = [table.offset, table.length, table.width, table.height, table.state, crc]
    return ShardProbes._make([*(column[order] for column in columns), reasons])


def _copy(source: int, target: int, start: int, end: int) -> None:
    for at in range(start, end, PART):
        write_at(target, os.pread(source, min(PART, end - at), at), at)
