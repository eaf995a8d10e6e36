"""Any source of images as byte ranges of files: what conversion reads. Nothing is decoded here.

    folder of images | tar, also of tars | WebDataset | Parquet, Arrow | IDX | CIFAR | .beton

Sources that have no byte range per image (compressed, columnar, arrays) are first written as tars by
`pipeline.conversion.spool`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from common.processes import in_processes
from common.progress import progress_bar
from pipeline.conversion.arrays import CIFAR, IDX, cifar_source, idx_source, is_cifar
from pipeline.conversion.columnar import SUFFIXES, columnar_below, columnar_source, holds_rows
from pipeline.conversion.keys import unique_keys
from pipeline.conversion.spool import Foreign
from pipeline.conversion.spool import spool as write_spool
from pipeline.dataset.beton import read_beton, table_beside
from pipeline.dataset.folder import list_folder
from pipeline.dataset.shards import list_shards
from pipeline.dataset.sniff import EXTENSIONS, extension, in_words
from pipeline.dataset.table import DatasetError, Names
from pipeline.dataset.tars import Members, Range, list_tar, split_key

KINDS = "give a folder of images, *.tar, *.parquet, *.arrow, an IDX pair, CIFAR's python files or a .beton"
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # only CIFAR's is read
SYNSET = re.compile(r"n\d{8}\.tar")  # a class of ILSVRC2012's train tar, unpacked one level


@dataclass(frozen=True, eq=False)
class Entries:
    """Images found in a source, N of them, each a byte range of a file.

    root: folder to which `files` are relative; file: (N,) int32 index into `files`.
    offset, length: (N,) int64 bytes; length -1 is the whole file.
    label: (N,) int32, -1 without; classes: names of the labels, () where unknown.
    keys: unique, also where case is ignored, without suffix; each is a valid WebDataset key.
    shape: (N, 2) int32 height and width where the bytes are raw RGB pixels, (0, 0) for an encoded image.
    refused: what was found but is never read: name -> reason; left_out: files that are no images, by extension.
    kind: 'folder', 'tar', 'webdataset', 'parquet', 'arrow', 'idx', 'cifar' or 'beton'.
    origin: fingerprint of the files that the user gave, by name, size and time.
    """

    root: Path
    files: Names
    file: Int32[np.ndarray, " n"]
    offset: Int64[np.ndarray, " n"]
    length: Int64[np.ndarray, " n"]
    label: Int32[np.ndarray, " n"]
    keys: Names
    shape: Int32[np.ndarray, "n 2"]
    classes: tuple[str, ...]
    kind: str
    origin: str
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.file)

    def fingerprint(self) -> str:
        """SHA-256 that changes with the source's files (name, size, time), and with what was found in them."""
        digest = hashlib.sha256(f"{self.kind} {self.origin} {len(self)}".encode())
        for blob in (self.keys.blob, Names.of(self.classes).blob):
            digest.update(blob)
        for column in (self.file, self.offset, self.length, self.label, self.shape):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def read(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> list[bytes]:
        """The bytes of `rows`, in their order; read in the order of the disk, with one file open at a time.

        Fewer bytes come where a file is shorter than it was. Raises OSError where one is gone or cannot be read.
        """
        wanted = [int(row) for row in rows]
        found = [b""] * len(wanted)
        opened, file = -1, None
        try:
            for place in sorted(range(len(wanted)), key=lambda i: (self.file[wanted[i]], self.offset[wanted[i]])):
                row = wanted[place]
                if self.file[row] != opened or file is None:
                    if file is not None:
                        file.close()
                    opened = int(self.file[row])
                    file = open(self.root / self.files[opened], "rb", buffering=0)  # noqa: SIM115
                length = int(self.length[row])
                found[place] = _pread(file.fileno(), length if length >= 0 else _size(file.fileno()), self.offset[row])
        finally:
            if file is not None:
                file.close()
        return found


def open_source(
    path: Path,
    spool: Path,
    workers: int = 1,
    progress: bool = True,
    permit: Callable[[Foreign], None] = lambda source: None,
) -> Entries:
    """All images of `path`, in one fixed order: a file or folder of any kind named above, or a pattern of files.

    `spool`: folder for the tars of sources without byte ranges; what a killed run left there is used again.
    `workers`: processes that list and spool. `permit` is asked before anything is spooled, and may raise. Raises
    DatasetError with one line.
    """
    path = Path(path).absolute()
    with _errors_of(path):
        found = _find(path, workers, progress)
    if isinstance(found, Foreign):
        permit(found)
        with _errors_of(path):
            found = _beside(path, found.files, _from_foreign(found, Path(spool), workers, progress))
    if not len(found):
        shutil.rmtree(spool, ignore_errors=True)  # of an empty Parquet file, say
        seen = f" and by their first bytes among {in_words(found.left_out)}" if found.left_out else ""
        raise DatasetError(f"{path}: no images found (looked for {' '.join(EXTENSIONS)}{seen}); {KINDS}")
    return found


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Errors name the source."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error} ({error.filename}); {KINDS}") from None


def _find(path: Path, workers: int, progress: bool) -> Entries | Foreign:
    """The images of `path`, or what has to be spooled for them."""
    if path.parent.is_file():  # cifar-10-python.tar.gz/test_batch
        return cifar_source(path)
    files = _files(path)
    betons = [file for file in files if file.suffix.lower() == ".beton"]
    if betons:
        return _beside(path, betons, _from_beton(_only(betons, "*.beton")))
    tars = [file for file in files if file.suffix.lower() == ".tar"]
    if tars:
        return _beside(path, tars, _from_tars(tars, workers, progress))
    foreign = _foreign(path, files)
    if foreign:
        return foreign
    if not path.is_dir():
        raise DatasetError(f"not a source of images; {KINDS}")
    entries = _from_folder(path.resolve())
    below = [] if len(entries) else columnar_below(path)
    if below:
        return columnar_source(below, path)
    packed = [file.name for file in files if file.name.lower().endswith(ARCHIVES)]
    if packed and not len(entries):
        raise DatasetError(
            f"holds compressed archives ({packed[0]}, ...), whose images have no byte range; unpack them"
        )
    return entries


def _beside(path: Path, taken: Sequence[Path], entries: Entries) -> Entries:
    """The entries, with the files counted that lie in the folder `path` beside or below those that were taken."""
    if not path.is_dir():
        return entries
    left_out, known = (
        Counter(entries.left_out),
        {str(each) for file in taken for each in (file, file.with_suffix(".idx"))},
    )
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name[0] != "."]
        visible = (name for name in files if name[0] != ".")
        left_out.update(extension(name) for name in visible if os.path.join(folder, name) not in known)
    return replace(entries, left_out=dict(left_out.most_common()))


def _foreign(path: Path, files: list[Path]) -> Foreign | None:
    """The source that has to be spooled, None if it is none of those."""
    for suffix in SUFFIXES:
        columnar = [file for file in files if file.suffix.lower() == suffix and holds_rows(file)]
        if columnar:
            return columnar_source(columnar)
    idx = [file for file in files if IDX.fullmatch(file.name)]
    if idx:
        return idx_source(_only(idx, "*-images-idx3-ubyte"))
    if is_cifar(files) if path.is_dir() else CIFAR.fullmatch(path.name) or path.name.lower().endswith(ARCHIVES):
        return cifar_source(path)
    return None


def _only(files: list[Path], pattern: str) -> Path:
    if len(files) > 1:
        raise DatasetError(f"holds {len(files)} {pattern} ({', '.join(file.name for file in files)}); name one of them")
    return files[0]


def _files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder or pattern ('train-*.parquet'), in order of name."""
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.name[0] != "." and entry.is_file())
    if path.exists():
        return [path]
    found = sorted(entry for entry in path.parent.glob(path.name) if entry.is_file()) if "*" in path.name else []
    if not found:
        raise DatasetError(f"no such file or folder; {KINDS}")
    return found


# ---------------------------------------------------------------------------------------------- spooled, .beton


def _from_foreign(source: Foreign, folder: Path, workers: int, progress: bool) -> Entries:
    spooled = _from_tars(write_spool(source, folder, workers, progress), workers, progress)
    return replace(spooled, kind=source.kind, classes=source.classes, origin=source.origin())


def _from_beton(path: Path) -> Entries:
    beton = read_beton(path)
    rows, beside = len(beton), table_beside(beton)  # the format itself has no names for labels
    shape, keys = (
        np.stack([beton.height, beton.width], axis=1) * beton.raw[:, None],
        (f"{row:08d}" for row in range(rows)),
    )
    return Entries(
        path.parent, Names.of([path.name]), np.zeros(rows, np.int32), beton.offset, beton.length, beton.label,
        Names.of(keys), shape, beside.classes if beside else (), "beton", beton.digest,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- folder, tar


def _from_folder(root: Path) -> Entries:
    listing = list_folder(root, sniff=True)
    rows = len(listing.names)
    return Entries(
        root, listing.names, np.arange(rows, dtype=np.int32), np.zeros(rows, np.int64), np.full(rows, -1, np.int64),
        listing.label, unique_keys(map(_without_suffix, listing.names)), np.zeros((rows, 2), np.int32),
        listing.classes, "folder", listing.fingerprint(), left_out=listing.left_out,
    )  # fmt: skip


@dataclass
class _Tar:
    """A tar that was listed: which file it is in, its members, and for a tar in a tar its stem."""

    file: int
    members: Members
    stem: str = ""


def _from_tars(paths: Sequence[Path], workers: int, progress: bool) -> Entries:
    """Entries of plain, nested and WebDataset tars."""
    root, listing = list_shards(paths)
    refused: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    tars = []
    outer = [Range(str(root / name)) for name in listing.names]
    for index, members in enumerate(_listed(outer, workers, progress)):
        inner = [Range(outer[index].path, offset, length) for _, offset, length in members.inner]
        stems = [name.rpartition(".")[0] for name, _, _ in members.inner]
        synset = SYNSET.fullmatch(listing.names[index])
        tars.append(_Tar(index, members, listing.names[index][:-4] if synset else ""))
        refused |= {f"{listing.names[index]}:{name}": why for name, why in members.refused.items()}
        for stem, found in zip(stems, _listed(inner, workers, progress), strict=True):
            tars.append(_Tar(index, found, stem))
            refused |= {f"{listing.names[index]}:{stem}.tar:{name}": why for name, why in found.refused.items()}
            refused |= {f"{listing.names[index]}:{stem}.tar:{name}": "tar too deep" for name, _, _ in found.inner}
    for listed in tars:
        left_out.update(listed.members.left_out)
    numbers = _numbered(tars)
    webdataset = bool((numbers >= 0).any())
    label, classes = (numbers, ()) if webdataset else _named(tars)
    lengths = [len(tar.members.names) for tar in tars]
    stems_and_names = ((tar.stem, name) for tar in tars for name in tar.members.names)
    keys = ((stem + "/" if stem else "") + _stem(name, webdataset) for stem, name in stems_and_names)
    return Entries(
        root, listing.names, np.repeat(np.array([tar.file for tar in tars], np.int32), lengths),
        _column(tar.members.offsets for tar in tars), _column(tar.members.lengths for tar in tars), label,
        unique_keys(keys), np.zeros((sum(lengths), 2), np.int32), classes,
        "webdataset" if webdataset else "tar", listing.fingerprint(), refused, dict(left_out.most_common()),
    )  # fmt: skip


def _listed(ranges: list[Range], workers: int, progress: bool) -> Iterator[Members]:
    """Members of each tar, in order."""
    with progress_bar(len(ranges), "listing tars", "tar", progress and len(ranges) > 1) as bar:
        for members in in_processes(
            partial(list_tar, sniff=True), iter(ranges), min(workers, len(ranges)), "--workers"
        ):
            bar.update()
            yield members


def _numbered(tars: Sequence[_Tar]) -> Int32[np.ndarray, " n"]:
    """Labels from the .cls and .json members, -1 where an image has none."""
    labels = [tar.members.labels.get(split_key(name)[0], -1) for tar in tars for name in tar.members.names]
    return np.array(labels, np.int32)


def _named(tars: Sequence[_Tar]) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """The class is the tar in the tar or, where there are none, the first-level folder (below the one that holds
    everything, if there is such a one)."""
    if any(tar.stem for tar in tars):
        names = [tar.stem.rpartition("/")[2] for tar in tars for _ in tar.members.names]
    else:
        members = [name for tar in tars for name in tar.members.names]
        tops = {name.partition("/")[0] for name in members}
        if len(tops) == 1 and all(name.count("/") > 1 for name in members):  # tar -cf train.tar train/
            members = [name.partition("/")[2] for name in members]
        names = [name.partition("/")[0] if "/" in name else "" for name in members]
    classes = tuple(sorted(set(names) - {""}))
    number = {name: index for index, name in enumerate(classes)} | {"": -1}
    return np.array([number[name] for name in names], np.int32), classes


def _column(parts: Iterable[list[int]]) -> Int64[np.ndarray, " n"]:
    return np.concatenate([np.array(part, np.int64) for part in parts])


def _stem(name: str, webdataset: bool) -> str:
    return split_key(name)[0] if webdataset else _without_suffix(name)


def _without_suffix(name: str) -> str:
    """`a.b/c` has none."""
    return os.path.splitext(name)[0]


# ---------------------------------------------------------------------------------------------- files


def _size(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


def _pread(descriptor: int, length: int, offset: Any) -> bytes:
    """Up to `length` bytes; one call of the system gives at most 2 GB."""
    offset = int(offset)
    data = os.pread(descriptor, length, offset)
    while data and len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
