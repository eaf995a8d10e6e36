"""Spooling: sources whose images have no byte range (compressed, columnar, arrays) are first written as tars.

Each input file is one task and one tar, written under a temporary name, synced and renamed, so that the next run after
a kill makes only the missing tars.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from common.files import locked, sync
from common.processes import in_processes
from common.progress import progress_bar
from pipeline.conversion.keys import key_maker
from pipeline.dataset.shards import Record, Shard
from pipeline.dataset.table import DatasetError
from pipeline.dataset.tar_images import list_shards

# First bytes of a file -> suffix. All others get 'jpg', arrays too: no decoder depends on the suffix, and
# beside pictures a .npy is no image.
MAGIC = {
    b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif", b"P6": "ppm",
}  # fmt: skip
TAR_BYTES = 2048  # per image in a tar in addition to its own bytes: headers, padding, label
NO_IMAGE = b"swave: "  # with a reason, spooled instead of an image that the source does not give
ABSENT = (
    NO_IMAGE
    + b"not in the file nor below its folder (path only): --images-in, or Dataset.save_to_disk, which embeds it"
)


class Sample(NamedTuple):
    """An image of an input: its name there without suffix, encoded bytes, label or -1."""

    name: str
    data: bytes
    label: int


@dataclass(frozen=True)
class SpoolSource:
    """A source to be spooled.

    inputs: the arguments of `samples`, one task each; files: all files that are read (a change means spooling again);
    samples: from an input to its images, a module-level function (or a `partial` of one) because processes import it by
    name; bytes: estimated size of the tars; classes: names of the labels, or (); note: a line for the user, or '';
    left_out: number of records without an image, by reason.
    """

    kind: str
    inputs: Sequence[str]
    files: Sequence[Path]
    samples: Callable[[str], Iterator[Sample]]
    bytes: int
    classes: tuple[str, ...] = ()
    note: str = ""
    left_out: dict[str, int] = field(default_factory=dict)

    def origin(self) -> str:
        """Fingerprint of the names, sizes and times of the files, and of what is taken of them."""
        files = list_shards(self.files)[1].fingerprint()
        taken = repr(getattr(self.samples, "keywords", {}))
        return hashlib.sha256(f"{files} {taken} {self.classes}".encode()).hexdigest()


def spool(source: SpoolSource, folder: Path, workers: int = 1, progress: bool = True) -> list[Path]:
    """The tars of `source` in `folder`, in order of its inputs; missing ones are made. Raises DatasetError."""
    stamp, problem = source.origin()[:16], ""
    stems = [Path(text).name.replace(".", "_").replace(" ", "_") for text in source.inputs]
    tars = [folder / f"{index:05d}-{stem}-{stamp}.tar" for index, stem in enumerate(stems)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            pairs = zip(source.inputs, tars, strict=True)
            tasks = [(source.samples, text, str(tar)) for text, tar in pairs if not tar.exists()]
            with progress_bar(len(tars), f"spooling {source.kind}", "file", progress) as bar:
                bar.update(len(tars) - len(tasks))
                for problem in in_processes(_spool_one, iter(tasks), min(workers, len(tasks)), "--workers"):
                    if problem:
                        break
                    bar.update()
    except OSError as error:
        raise DatasetError(f"cannot spool to {folder} ({error.strerror}); give a folder with room") from None
    if problem:
        shutil.rmtree(folder, ignore_errors=True)  # the source has to change, so the tars will be of no use
        raise DatasetError(problem)
    return tars


def _spool_one(task: tuple[Callable[[str], Iterator[Sample]], str, str]) -> str:
    """Make one tar; returns the problem with the input, or ''."""
    samples, text, path = task
    tar = Path(path)
    partial = tar.with_name(f".{tar.stem}.partial.tar")  # a fixed name, so that the next run overwrites it
    shard, key = Shard(partial), key_maker()
    try:
        for sample in samples(text):
            # '/' is replaced, because a folder in the name would count as the class.
            shard.add(Record(key(sample.name.replace("/", "_")), sample.data, _suffix(sample.data), sample.label))
    except DatasetError as error:
        return str(error)
    finally:
        shard.close()
    os.replace(partial, tar)
    partial.with_suffix(".idx").unlink()
    sync(tar.parent)
    return ""


def _suffix(data: bytes) -> str:
    return next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), "jpg")
