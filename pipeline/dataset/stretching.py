"""The stretch of a dataset: percentiles of its values become black and white, for data that use a part of their type.

The percentiles are exact: each channel has a histogram of all values of all images, which processes add up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from common.files import lock, write_atomically
from common.processes import in_processes
from common.progress import progress_bar
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.table import DatasetError, SampleTable

CHUNK = 64  # images a task


def stretched(
    table: SampleTable, percentiles: Sequence[float], given: Any, cache: Path, workers: int, progress: bool = True
) -> SampleTable:
    """The table of training images with a range: `given`, a pair for each channel, or if that is 'auto', these two
    percentiles of its own images. cache, workers, progress: as for `ranges_of`. Raises DatasetError."""
    low, high = percentiles
    if not table.pixels.native or not table.pixels.has_range:
        problem = f"the images are {table.pixels}, and a stretch is of uint8 or uint16 with their own channels"
        raise DatasetError(f"data.stretch=[{low:g}, {high:g}]: {problem}; leave it out")
    if given == "auto":
        given = ranges_of(table, (low, high), cache, workers or len(os.sched_getaffinity(0)), progress)
    elif len(given) != table.pixels.channels:
        raise DatasetError(f"data.range: {len(given)} pairs, and the images have {table.pixels}; leave it out")
    values = tuple((int(first), int(last)) for first, last in given)
    if any(first >= last for first, last in values):
        raise DatasetError(
            f"data.range={[list(ends) for ends in values]}: expected pairs of a lower and a higher value"
        )
    return replace(table, pixels=replace(table.pixels, range=values))


def ranges_of(
    table: SampleTable, percentiles: tuple[float, float], cache: Path, workers: int, progress: bool
) -> list[list[int]]:
    """For each channel the lowest values that so many percent of all pixels do not exceed: from their file in `cache`,
    or computed and written there. Raises DatasetError where the two are equal."""
    low, high = percentiles
    file = cache / "statistics" / f"{table.root.name or 'root'}-{identity(table)[:12]}-{low:g}-{high:g}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock(file.with_suffix(".lock")):
            with suppress(OSError, ValueError):  # missing or damaged
                return json.loads(file.read_text())
            counts = _counted(table, workers, progress)
            found = [[_percentile(row, percent) for percent in percentiles] for row in counts]
            for channel, (first, last) in enumerate(found):
                if first == last:
                    problem = f"both are {first} in channel {channel}; take others"
                    raise DatasetError(f"data.stretch=[{low:g}, {high:g}]: {problem}")
            write_atomically(file, json.dumps(found) + "\n")
            return found
    except OSError as error:
        problem = f"cannot write statistics to {cache} ({error.strerror or error})"
        raise DatasetError(f"data.cache={cache}: {problem}; set another") from None


def _percentile(counts: Int64[np.ndarray, " values"], percent: float) -> int:
    total = np.cumsum(counts)
    return int(np.searchsorted(total, max(1.0, percent / 100 * total[-1])))


def _counted(table: SampleTable, workers: int, progress: bool) -> Int64[np.ndarray, "channels values"]:
    """How many pixels of all usable images have each value, by channel."""
    rows = table.usable()
    parts = [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]
    counts = np.zeros((table.pixels.channels, int(table.pixels.white) + 1), np.int64)
    with progress_bar(len(rows), "percentiles", "img", progress) as bar:
        tasks = (table_of(table, part) for part in parts)
        for part, found in zip(parts, in_processes(_histogram, tasks, workers if len(parts) > 8 else 1), strict=True):
            counts += found
            bar.update(len(part))
    if not counts.any():
        raise DatasetError(f"{table.root}: no image can be read any more")
    return counts


def _histogram(table: SampleTable) -> Int64[np.ndarray, "channels values"]:
    counts = np.zeros((table.pixels.channels, int(table.pixels.white) + 1), np.int64)
    with closing(Reader(table, threads=1)) as reader:
        for row in range(len(table)):
            with suppress(ReadError):  # training replaces such an image
                image = reader.native(row)
                for channel, line in enumerate(counts):
                    line += np.bincount(image[..., channel].ravel(), minlength=len(line))
    return counts


def identity(table: SampleTable) -> str:
    """SHA-256 of what says that images are the same: the table's columns, its place, and the times of its files."""
    digest = hashlib.sha256(
        f"{table.digest()} {table.root} {table.fingerprint} {table.pixels} {table.pixels.range}".encode()
    )
    if not table.loose:
        for name in table.files():
            status = (table.root / name).stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def table_of(table: SampleTable, rows: np.ndarray) -> SampleTable:
    """A table of these usable rows alone, small enough to be sent to a process."""
    kept, container = np.unique(table.container[rows], return_inverse=True)
    columns = {name: getattr(table, name)[rows] for name in ("offset", "length", "width", "height", "state")}
    names: Sequence[str] = [table.containers[index] for index in kept]
    label = np.full(len(rows), -1)
    bands = None
    if table.bands is not None:
        bands, names, container = table.bands[rows], table.containers, table.container[rows]
    return SampleTable(
        table.root, names, container.astype(np.int32), label=label, pixels=table.pixels, bands=bands, **columns
    )
