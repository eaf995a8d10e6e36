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
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from common.files import write_at
from pipeline.dataset.beton import read_beton, scan_beton
from pipeline.dataset.channels.format import PixelFormat
from pipeline.dataset.finding.choice import ALL, NONE, Choice
from pipeline.dataset.finding.find import PART as PART_OF_TFRECORD
from pipeline.dataset.finding.find import SUFFIXES
from pipeline.dataset.folder import probe_encoded, probe_rows
from pipeline.dataset.records.images import record_images
from pipeline.dataset.shards import scan_shards
from pipeline.dataset.sniff import HEAD, has_extension
from pipeline.dataset.table import DatasetError, SampleTable
from pipeline.remote.index import ImageProbe
from pipeline.remote.probes import ShardProbes

INDEX = "index.json"
CHUNK = re.compile(r"chunk-\d+-\d+\.bin")  # of LitData
PART = 8 << 20
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
    kind = shard_kind(name)
    if kind == "beton":
        found = _columns_of_table(scan_beton(read_beton(shard, Choice(label=NONE)), workers, progress=False))
    elif kind == "tar":
        found = _columns_of_table(scan_shards([shard], workers, progress=False, choice=Choice(ALL, NONE)))
    else:
        found = _columns_of_records(kind, shard, name.rpartition("/")[2], beside, workers)
    found = found.by_offset()
    crc = np.zeros(len(found.offset), np.uint32)
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


def _columns_of_table(table: SampleTable) -> ShardProbes:
    """What a scan found out. Raises DatasetError for images that are not 8-bit RGB."""
    _check_pixels(table.pixels)
    reasons = {int(table.offset[row]): reason for row, reason in table.quarantine.items()}
    columns = (table.offset, table.length, table.width, table.height, table.state)
    return ShardProbes(*columns, np.zeros(len(table), np.uint32), reasons)


def _columns_of_records(kind: str, shard: Path, name: str, beside: Path, workers: int) -> ShardProbes:
    choice = Choice(label=NONE)
    with TemporaryDirectory(dir=shard.parent) as folder:
        root = Path(folder)
        (root / name).symlink_to(shard)
        (root / INDEX).symlink_to(beside / INDEX)  # LitData's columns
        images = record_images(kind, root, [name], choice, 1, False, "data.workers")
        if images.no_range:
            raise DatasetError(f"{images.no_range}, which is not fetched in part; {ADVICE}")
        place = (root, [name], images.file, images.offset, images.length, images.shape)
        probes = probe_encoded(*place, workers, False, choice=choice)
    reasons = {int(images.offset[row]): reason for row, reason in probes.quarantine.items()}
    crc = np.zeros(len(images.offset), np.uint32)
    return ShardProbes(images.offset, probes.length, probes.width, probes.height, probes.state, crc, reasons)


def images_apart(files: Sequence[Path], workers: int) -> list[ImageProbe]:
    """Decode images that are files of one folder, and make a hole of each. Raises DatasetError for images that are not
    8-bit RGB."""
    numbers, names = np.arange(len(files), dtype=np.int32), [file.name for file in files]
    offsets = np.zeros(len(files), np.int64)
    probes = probe_rows(files[0].parent, names, numbers, offsets, None, workers, False, choice=Choice())
    _check_pixels(probes.pixels)
    found = []
    for row, file in enumerate(files):
        crc = zlib.crc32(file.read_bytes())
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
