"""Scans a shard once and keeps what a table needs of it: all its bytes but those of the images.

A shard is a tar, a .beton, or a file of records: TFRecord, RecordIO, MDS, LitData. The file that stays, its skeleton,
has the size of the shard and holes where the images are. So today's code lists it like the shard: names, labels, tars
in the tar. What needs the images is kept beside it: `pipeline.remote.probes`. An image that is an object of its own
becomes a hole.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from common.files import write_at
from pipeline.dataset.beton import BetonFile, read_beton, scan_beton
from pipeline.dataset.channels.format import PixelFormat
from pipeline.dataset.finding.choice import ALL, NONE, Choice
from pipeline.dataset.finding.find import PART as PART_OF_TFRECORD
from pipeline.dataset.finding.find import SUFFIXES
from pipeline.dataset.folder import probe_encoded, probe_rows
from pipeline.dataset.records.images import RecordImages, record_images
from pipeline.dataset.shards import scan_shards
from pipeline.dataset.sniff import HEAD, has_extension
from pipeline.dataset.table import DECODE, DatasetError, SampleTable
from pipeline.dataset.tar_images import TarImages, tar_images
from pipeline.remote.index import ImageProbe
from pipeline.remote.probes import UNKNOWN, ShardProbes

INDEX = "index.json"
CHUNK = re.compile(r"chunk-\d+-\d+\.bin")  # of LitData
PART = 8 << 20
UNLABELED, EVERY = Choice(label=NONE), Choice(ALL, NONE)
ADVICE = "raise data.cache_bytes above the size of all objects"


def shard_kind(name: str) -> str:
    """'tar', 'beton' or the kind of records of a shard whose images have byte ranges, by its name; '' for another."""
    name = name.rpartition("/")[2]
    if CHUNK.fullmatch(name):
        return "litdata"
    kind = SUFFIXES.get(os.path.splitext(name)[1].lower(), "tfrecord" if PART_OF_TFRECORD.fullmatch(name) else "")
    return kind if kind in ("tar", "beton", "tfrecord", "recordio", "mds") else ""


def comes_apart(name: str) -> bool:
    """Whether the images of an object can be fetched one by one, or it is an image, by its name."""
    return has_extension(name) or shard_kind(name) != ""


def take_apart(shard: Path, name: str, beside: Path, skeleton: Path, workers: int) -> ShardProbes:
    """Decode every image of a shard with this name, and write its skeleton. beside: the folder of the files that belong
    to it. Raises DatasetError for a damaged one, and for one that has several fields of images."""
    found = probes_of(shard, name, beside, workers)
    crc = np.zeros(len(found.offset), np.int64)
    with shard.open("rb") as source, skeleton.open("wb") as target:
        size = os.fstat(source.fileno()).st_size
        os.ftruncate(target.fileno(), size)
        at = 0
        for row, (start, length) in enumerate(zip(found.offset.tolist(), found.length.tolist(), strict=True)):
            _copy(source.fileno(), target.fileno(), at, start + min(length, HEAD))  # the head says that it is an image
            crc[row] = zlib.crc32(os.pread(source.fileno(), length, start))
            at = max(at, start + length)
        _copy(source.fileno(), target.fileno(), at, size)
    return found._replace(crc=crc)


def probes_of(shard: Path, name: str, beside: Path, workers: int, check: str = DECODE) -> ShardProbes:
    """What a scan finds out about the images of a shard with this name; no checksums. Raises DatasetError as
    `take_apart` does."""
    kind = shard_kind(name)
    if kind == "beton":
        return _columns_of_table(scan_beton(read_beton(shard, UNLABELED), workers, progress=False, check=check))
    if kind == "tar":
        return _columns_of_table(scan_shards([shard], workers, progress=False, choice=EVERY, check=check))
    with _listed(kind, shard, name, beside) as (root, images):
        place = (root, [name.rpartition("/")[2]], images.file, images.offset, images.length, images.shape)
        probes = probe_encoded(*place, workers, False, check, UNLABELED)
    reasons = {int(images.offset[row]): reason for row, reason in probes.quarantine.items()}
    crc = np.full(len(images.offset), UNKNOWN, np.int64)
    columns = (probes.length, probes.width, probes.height, probes.state)
    return ShardProbes(images.offset, *columns, crc, reasons).by_offset()


def image_ranges(shard: Path, name: str, beside: Path) -> list[tuple[int, int]]:
    """Offset and length of each image of a shard, in any order, or of what only images are in; reads the index only.
    Raises DatasetError."""
    kind = shard_kind(name)
    found: BetonFile | TarImages | RecordImages
    if kind == "beton":
        found = read_beton(shard, UNLABELED)
        if found.only_images:  # then the rest of a page holds nothing, and the index was read
            starts = np.append(0, np.sort(found.offset))
            return list(zip(starts.tolist(), np.diff(starts, append=shard.stat().st_size).tolist(), strict=True))
    elif kind == "tar":
        found = tar_images(shard.parent, [shard.name], EVERY, 1, False)
    else:
        with _listed(kind, shard, name, beside) as (_, images):
            found = images
    return list(zip(found.offset.tolist(), found.length.tolist(), strict=True))


def _columns_of_table(table: SampleTable) -> ShardProbes:
    """What a scan found out. Raises DatasetError for images that are not 8-bit RGB."""
    _check_pixels(table.pixels)
    reasons = {int(table.offset[row]): reason for row, reason in table.quarantine.items()}
    columns = (table.offset, table.length, table.width, table.height, table.state)
    return ShardProbes(*columns, np.full(len(table), UNKNOWN, np.int64), reasons).by_offset()


@contextmanager
def _listed(kind: str, shard: Path, name: str, beside: Path) -> Iterator[tuple[Path, RecordImages]]:
    """The images of a file of records, and a folder that has it under its own name. Raises DatasetError if they have no
    byte ranges."""
    with TemporaryDirectory(dir=shard.parent) as folder:
        root, own = Path(folder), name.rpartition("/")[2]
        (root / own).symlink_to(shard)
        (root / INDEX).symlink_to(beside / INDEX)  # LitData's columns
        images = record_images(kind, root, [own], UNLABELED, 1, False, "data.workers")
        if images.no_range:
            raise DatasetError(f"{images.no_range}, which is not fetched in part; {ADVICE}")
        yield root, images


def images_apart(files: Sequence[Path], workers: int, check: str = DECODE) -> list[ImageProbe]:
    """Decode images that are files of one folder, or read their headers, and make a hole of each. Raises DatasetError
    for images that are not 8-bit RGB."""
    numbers, names = np.arange(len(files), dtype=np.int32), [file.name for file in files]
    offsets = np.zeros(len(files), np.int64)
    probes = probe_rows(files[0].parent, names, numbers, offsets, None, workers, False, check=check, choice=Choice())
    _check_pixels(probes.pixels)
    found = []
    for row, file in enumerate(files):
        crc = zlib.crc32(file.read_bytes()) if check == DECODE else UNKNOWN
        length, width, height, state = (int(column[row]) for column in probes[:4])
        found.append(ImageProbe(length, width, height, state, crc, probes.quarantine.get(row, "")))
        os.truncate(file, 0)
        os.truncate(file, length)
    return found


def _check_pixels(pixels: PixelFormat) -> None:
    if pixels.native:
        raise DatasetError(f"images with {pixels} are not fetched one by one; {ADVICE}")


def _copy(source: int, target: int, start: int, end: int) -> None:
    for at in range(start, end, PART):
        write_at(target, os.pread(source, min(PART, end - at), at), at)
