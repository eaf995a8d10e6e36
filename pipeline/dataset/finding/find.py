"""Finds what kind of source a path is, and its files: the one way for training, evaluation, preview and conversion."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.dataset.finding.index import listed_in_index
from pipeline.dataset.sniff import extension, has_extension, is_hidden
from pipeline.dataset.table import DatasetError

SUFFIXES = {
    ".beton": "beton", ".tar": "tar", ".parquet": "parquet", ".arrow": "arrow", ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord", ".rec": "recordio", ".mds": "mds", ".lmdb": "lmdb", ".mdb": "lmdb",
    ".h5": "hdf5", ".hdf5": "hdf5",
}  # fmt: skip
PART = re.compile(r".*(\.tfrecords?)?-\d{5}-of-\d{5}", re.IGNORECASE)  # of TensorFlow Datasets, of TF-Slim
ARRAY_RECORD = re.compile(r".*\.array_record(-\d{5}-of-\d{5})?")  # of TensorFlow Datasets and Grain
IDX = re.compile(r"(.*)images([-.])idx3(-ubyte)?(\.gz)?", re.IGNORECASE)
CIFAR = re.compile(r"data_batch_\d+|test_batch|train|test")
MDS = re.compile(r"(.*\.mds)\.(zstd|gz|br|bz2|snappy)")  # a compressed shard
LANCE = "_versions"  # in the folder of a Lance dataset
DATABASE = "data.mdb"  # of LMDB, in a folder for each database
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # only that of CIFAR is read
RECORDS = ("tfrecord", "recordio", "mds", "litdata", "lmdb")  # kinds that `pipeline.dataset.records` lists
# Written by conversion beside the images.
COMPANIONS = ("table.npz", "table.json", "report.json")


class Found(NamedTuple):
    """kind: 'table', 'beton', 'tar', one of RECORDS, 'hdf5', 'parquet', 'arrow', 'lance', 'idx', 'cifar', 'folder' or
    ''. files: sorted; of a folder of images none."""

    kind: str
    files: list[Path]


def find_source(path: Path, kinds: str) -> Found:
    """What is at `path`: a file, a folder, or a pattern of files ('train-*.tar'). Hidden files do not count.

    kinds: what the caller reads, for the message. Raises DatasetError if nothing is there, or if a folder holds several
    kinds: then it is not clear which of them is meant.
    """
    if path.parent.is_file():  # cifar-10-python.tar.gz/test_batch
        return Found("cifar", [path])
    files = _files(path, kinds)
    if path.is_dir() and (path / "table.npz").is_file():
        return Found("table", [path / "table.npz"])
    if path.is_dir() and (path / DATABASE).is_file():
        return Found("lmdb", [path / DATABASE])
    if path.is_dir() and (path / LANCE).is_dir():
        return Found("lance", [path])
    if path.is_dir() and (path / "index.json").is_file() and (listed := listed_in_index(path / "index.json")):
        return Found(*listed)
    if array_record := next((file.name for file in files if ARRAY_RECORD.fullmatch(file.name)), None):
        advice = "write the dataset as TFRecord (tensorflow-datasets: file_format='tfrecord')"
        raise DatasetError(f"{array_record}: an ArrayRecord, which swave does not read; {advice}")
    found: dict[str, list[Path]] = {}
    for file in files:
        kind = _kind(file, path.is_dir())
        if kind:
            found.setdefault(kind, []).append(file)
    if path.is_dir() and is_cifar(files):
        found["cifar"] = [path]
    if "parquet" in found:
        found["parquet"] = [file for file in found["parquet"] if not describes_shard(file)]
        found = {kind: those for kind, those in found.items() if those}
    if len(found) > 1:
        counted = ", ".join(f"{len(found[kind])} {kind}" for kind in found)
        raise DatasetError(f"holds several kinds of sources ({counted} files); {_name_one(path, found)}")
    if path.is_dir() and found and (image := first_image(path)):
        (kind,) = found
        held = f"holds {len(found[kind])} {kind} file{'s' * (len(found[kind]) > 1)} beside images ({image}, ...)"
        raise DatasetError(f"{held}; move the others away, or {_name_one(path, found)}")
    if found:
        return Found(*found.popitem())
    return Found("folder" if path.is_dir() else "", [])


def _name_one(path: Path, found: dict[str, list[Path]]) -> str:
    files = next(iter(found.values()))
    one = files[0] if len(files) == 1 else files[0].parent / f"*{files[0].suffix}"
    return f"name those that you mean, e.g. data.path='{one}'"


def _kind(file: Path, in_folder: bool) -> str:
    name = file.name
    kind = SUFFIXES.get(file.suffix.lower(), "")
    if kind in ("parquet", "arrow") and not holds_rows(file):
        return ""
    if kind:
        return kind
    if PART.fullmatch(name):
        return "tfrecord"
    if MDS.fullmatch(name):
        return "mds"
    if IDX.fullmatch(name):
        return "idx"
    if in_folder:
        return ""
    if file.suffix.lower() == ".npz":
        return "table"
    return "cifar" if CIFAR.fullmatch(name) or name.lower().endswith(ARCHIVES) else ""


def is_cifar(files: Iterable[Path]) -> bool:
    """Whether these files of a folder are those of CIFAR-10 or CIFAR-100."""
    names = {file.name for file in files}
    return "data_batch_1" in names or {"train", "meta"} <= names


def holds_rows(path: Path) -> bool:
    """Whether a file is data: not a cache of `datasets`, and not the metadata.parquet of a folder of images."""
    return path.is_file() and path.stem != "metadata" and not path.name.startswith("cache-")


def describes_shard(file: Path) -> bool:
    """Whether a Parquet file is the table that img2dataset writes beside a shard: 00000.parquet, 00000_stats.json and
    00000.tar, 00000.tfrecord or the folder 00000/."""
    shards = (file.with_suffix(suffix) for suffix in (".tar", ".tfrecord", ""))
    return file.with_name(f"{file.stem}_stats.json").is_file() and any(shard.exists() for shard in shards)


def first_image(folder: Path) -> str:
    """The name of any image in or below a folder, by its extension; '' if there is none."""
    for below, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if name[0] != "." and has_extension(name):
                return os.path.relpath(os.path.join(below, name), folder)
    return ""


def sources_below(root: Path) -> str:
    """A hint for a folder without images: the first folder below that holds other sources; '' if none does."""
    for below, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        kinds = {_kind(Path(below, name), True) for name in names if name[0] != "."} - {""}
        if kinds and Path(below) != root:
            return f"; its folder {os.path.relpath(below, root)} holds {min(kinds)} files: give that one"
    return ""


def left_out_beside(path: Path, used: Iterable[Path]) -> Counter[str]:
    """Numbers of the other visible files in and below the folder `path`, by extension; nothing if it is no folder."""
    left_out: Counter[str] = Counter()
    if not path.is_dir():
        return left_out
    known = {str(each) for file in used for each in (file, file.with_suffix(".idx"), *_companions(file))}
    known |= {str(path / of_library(file)) for file in used}
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not is_hidden(name)]
        visible = (name for name in files if name[0] != ".")
        left_out.update(extension(name) for name in visible if os.path.join(folder, name) not in known)
    return left_out


def _companions(file: Path) -> list[Path]:
    """What conversion writes beside a file."""
    names = [
        *COMPANIONS,
        *(f"{file.stem}{end}" for end in (".npz", ".json", ".report.json", ".tiles.txt")),
        of_library(file),
    ]
    return [file.with_name(name) for name in names]


def of_library(file: Path) -> str:
    """The file that MDS, LitData or LMDB keep beside this one; else its own name."""
    if ".mds" in file.suffixes or file.suffix == ".bin":
        return "index.json"
    return "lock.mdb" if file.name == DATABASE else f"{file.name}-lock" if file.suffix == ".lmdb" else file.name


def _files(path: Path, kinds: str) -> list[Path]:
    """The file itself, or the files of a folder or pattern ('train-*.parquet'), sorted by name."""
    if path.is_dir():
        return sorted(path / entry.name for entry in os.scandir(path) if entry.name[0] != "." and entry.is_file())
    if path.exists():
        return [path]
    pattern = path.name.replace("[", "[[]")  # only `*` and `?` have a meaning in a pattern
    matches = sorted(entry for entry in path.parent.glob(pattern) if entry.is_file()) if "*" in path.name else []
    matches = [entry for entry in matches if entry.name[0] != "."]
    if not matches:
        raise DatasetError(f"no such file or folder; {kinds}")
    return matches
