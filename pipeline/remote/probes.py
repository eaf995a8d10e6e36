"""What a scan found out about the images of shards whose bytes it did not keep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import NPZ_DAMAGE, replacing
from pipeline.dataset.images import Probes
from pipeline.dataset.table import DatasetError, Names, State
from pipeline.remote.index import Index

FILES = "files"  # the mirror's folder of objects
PROBES = "probes"  # that of what the scan found out
IMAGES = "images"  # the folder of those that are kept
UNKNOWN = -1  # in place of a checksum
APART = "without-images.json"  # the mirror's shards are skeletons; the address, and the bound of `images`


class ShardProbes(NamedTuple):
    """n images, those of a shard by offset, ascending. length: bytes; width, height, state: as in a `SampleTable`; crc:
    CRC-32 of an image's bytes, or UNKNOWN; reasons: why it cannot be decoded, by offset."""

    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    state: NDArray[np.uint8]
    crc: NDArray[np.int64]
    reasons: dict[int, str]

    def by_offset(self) -> ShardProbes:
        order = np.argsort(self.offset, kind="stable")
        columns: list[Any] = [*self[:-1]]
        return ShardProbes._make([*(column[order] for column in columns), self.reasons])


def mirror_without_images(root: Path) -> Path | None:
    """The folder of the mirror to which a table's root belongs, if that keeps no images; else None."""
    for folder in (root, *root.parents):
        if folder.name == FILES and (folder.parent / APART).exists():
            return folder.parent
    return None


def probes_file(mirror: Path, name: str) -> Path:
    return mirror / PROBES / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:20]}.npz"


def save_probes(file: Path, probes: ShardProbes) -> None:
    columns = {name: getattr(probes, name) for name in ShardProbes._fields[:-1]}
    reasons = np.frombuffer(Names.of(probes.reasons.values()).blob, np.uint8)
    with replacing(file) as target:
        np.savez(target, bad=np.array(list(probes.reasons), np.int64), reasons=reasons, **columns)


def load_probes(file: Path) -> ShardProbes:
    """Raises DatasetError if the file is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            reasons = Names(stored["reasons"].tobytes())
            bad = dict(zip(stored["bad"].tolist(), reasons, strict=True))
            return ShardProbes._make([*(stored[name] for name in ShardProbes._fields[:-1]), bad])
    except NPZ_DAMAGE:
        raise DatasetError(f"{file}: missing or damaged; delete {file.parents[1]}, and it is fetched again") from None


def kept_probes(
    root: Path,
    containers: Sequence[str],
    container: NDArray[np.int32],
    offset: NDArray[np.int64],
    bands: NDArray[np.int64] | None = None,
) -> Probes | None:
    """What `probe_rows` would find out, for tables in a mirror without images; None for others.

    container, offset: (N,) of the images; bands: see `SampleTable`. Raises DatasetError for images of several files.
    """
    mirror = mirror_without_images(root)
    if mirror is None:
        return None
    if bands is not None:
        problem = "images of several files are not fetched one by one"
        raise DatasetError(f"{problem}; raise data.cache_bytes above the size of all objects")
    columns = columns_of(mirror, root, containers, container, offset)
    reasons = {row: columns.reasons[row] for row in np.flatnonzero(columns.state == State.QUARANTINED).tolist()}
    return Probes(columns.length, columns.width, columns.height, columns.state, reasons)


def columns_of(
    mirror: Path, root: Path, containers: Sequence[str], container: NDArray[np.int32], offset: NDArray[np.int64]
) -> ShardProbes:
    """The probes of N images of several shards, in the order of the images; `reasons` by row. Raises DatasetError."""
    dtypes = (np.int64, np.int64, np.int32, np.int32, np.uint8, np.int64)
    columns: list[Any] = [np.zeros(len(container), dtype) for dtype in dtypes]
    reasons: dict[int, str] = {}
    held = Index(mirror).held
    order = np.argsort(container, kind="stable")
    ends = np.searchsorted(container[order], np.arange(len(containers)), side="right")
    for name, rows in zip(containers, np.split(order, ends[:-1]), strict=True):
        if not len(rows):
            continue
        stored = held.get(path := mirror_path(mirror, root, name))
        if stored is not None and stored.image is not None:
            (row,) = rows.tolist()
            *values, reason = stored.image
            for column, value in zip(columns[1:], values, strict=True):
                column[row] = value
            reasons |= {row: reason} if reason else {}
            continue
        shard = load_probes(probes_file(mirror, path))
        found = np.searchsorted(shard.offset, offset[rows])
        if (found >= len(shard.offset)).any() or (shard.offset[found] != offset[rows]).any():
            raise DatasetError(
                f"{root / name}: not the shard that was scanned; delete {mirror}, and it is fetched again"
            )
        arrays: list[Any] = [*shard[:-1]]
        for column, array in zip(columns, arrays, strict=True):
            column[rows] = array[found]
        reasons |= {row: shard.reasons[at] for row, at in zip(rows.tolist(), offset[rows].tolist(), strict=True)
                    if at in shard.reasons}  # fmt: skip
    return ShardProbes._make([*columns, reasons])


def mirror_path(mirror: Path, root: Path, name: str) -> str:
    """The object's name in the index for a container of a table."""
    return str((root / name).relative_to(mirror / FILES))


def shard_digests(root: Path, containers: Sequence[str]) -> Mapping[str, str] | None:
    """SHA-256 of each shard of a mirror without images, from when it was fetched; None for other tables."""
    mirror = mirror_without_images(root)
    if mirror is None:
        return None
    held = Index(mirror).held
    return {name: held[mirror_path(mirror, root, name)].sha256 for name in containers}
