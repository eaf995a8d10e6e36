"""Spooling: images that no byte range of their source holds (compressed, columnar, arrays) become tars once.

Each input file is one task and one tar, written under a temporary name, synced and renamed, so that a run that was
killed goes on with the files that are missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.files import locked, sync
from common.processes import in_processes
from common.progress import progress_bar
from pipeline.conversion.keys import key_maker
from pipeline.dataset.shards import Record, Shard, list_shards
from pipeline.dataset.table import DatasetError

# The first bytes of a file -> suffix. What has none of them keeps 'jpg': nobody decodes by suffix.
MAGIC = {
    b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif", b"P6": "ppm",
}  # fmt: skip


TAR_BYTES = 2048  # of an image in a tar beyond its own: headers, padding, label
ABSENT = b"swave: not in the file (path only)"  # is spooled in place of an image of which there is but a name


class Sample(NamedTuple):
    """An image as it comes out of an input: its name there without suffix, encoded bytes, label or -1."""

    name: str
    data: bytes
    label: int


@dataclass(frozen=True)
class Foreign:
    """A source to be spooled.

    inputs: what `samples` takes, one task each; files: everything that is read, whose change means spooling again;
    samples: a function of a module, because processes get it by name; bytes: about what the tars will take; classes:
    names of the labels, or ().
    """

    kind: str
    inputs: Sequence[str]
    files: Sequence[Path]
    samples: Callable[[str], Iterator[Sample]]
    bytes: int
    classes: tuple[str, ...] = ()

    def origin(self) -> str:
        """Fingerprint of the files by name, size and time."""
        return list_shards(self.files)[1].fingerprint()


def spool(source: Foreign, folder: Path, workers: int = 1, progress: bool = True) -> list[Path]:
    """The tars of `source` in `folder`, in order of its inputs, made where they are missing. Raises DatasetError."""
    stamp, wrong = source.origin()[:16], ""
    stems = [Path(text).name.replace(".", "_").replace(" ", "_") for text in source.inputs]
    tars = [folder / f"{index:05d}-{stem}-{stamp}.tar" for index, stem in enumerate(stems)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            pairs = zip(source.inputs, tars, strict=True)
            tasks = [(source.samples, text, str(tar)) for text, tar in pairs if not tar.exists()]
            with progress_bar(len(tars), f"spooling {source.kind}", "file", progress) as bar:
                bar.update(len(tars) - len(tasks))
                for wrong in in_processes(_spool_one, iter(tasks), min(workers, len(tasks)), "--workers"):
                    if wrong:
                        break
                    bar.update()
    except OSError as error:
        raise DatasetError(f"cannot spool to {folder} ({error.strerror}); give a folder with room") from None
    if wrong:
        shutil.rmtree(folder, ignore_errors=True)  # the source will change: there is nothing to go on with
        raise DatasetError(wrong)
    return tars


def _spool_one(task: tuple[Callable[[str], Iterator[Sample]], str, str]) -> str:
    """Make one tar; what is wrong with the input, or ''."""
    samples, text, path = task
    tar = Path(path)
    partial = tar.with_name(f".{tar.stem}.partial.tar")  # its name is fixed: the next run writes over it
    shard, key = Shard(partial), key_maker()
    try:
        for sample in samples(text):
            # Without '/', or a folder in the name would count as the class.
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
