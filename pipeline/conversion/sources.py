"""Lists any source of images as byte ranges of files, without decoding them.

    folder of images | tar, also of tars | WebDataset | Parquet, Arrow | IDX | CIFAR | .beton

Sources that have no byte range per image (compressed, columnar, arrays) are first written as tars by
`pipeline.conversion.spool`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.conversion.arrays import CIFAR, IDX, cifar_source, idx_source, is_cifar
from pipeline.conversion.columnar import SUFFIXES, columnar_below, columnar_source, holds_rows
from pipeline.conversion.entries import Entries
from pipeline.conversion.keys import unique_keys
from pipeline.conversion.spool import SpoolSource, spool
from pipeline.conversion.tar_entries import tar_entries
from pipeline.dataset.beton import converted_table, read_beton
from pipeline.dataset.folder import list_folder
from pipeline.dataset.sniff import EXTENSIONS, extension, in_words
from pipeline.dataset.table import DatasetError, Names

KINDS = "give a folder of images, *.tar, *.parquet, *.arrow, an IDX pair, CIFAR's Python files or a .beton"
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # only that of CIFAR is read


def open_source(
    path: Path,
    spool_folder: Path,
    workers: int = 1,
    progress: bool = True,
    check: Callable[[SpoolSource], None] = lambda source: None,
) -> Entries:
    """All images of `path`, in a fixed order: a file or folder of any kind named above, or a pattern of files.

    spool_folder: for the tars of sources without byte ranges; tars from a killed run are used again. workers: processes
    that list and spool. check: called before a source is spooled, and may raise. Raises DatasetError with one line.
    """
    path = Path(path).absolute()
    with _errors_name(path):
        source = _find(path, workers, progress)
    if isinstance(source, SpoolSource):
        check(source)
        with _errors_name(path):
            entries = _count_left_out(path, source.files, _from_spool(source, Path(spool_folder), workers, progress))
    else:
        entries = source
    if not len(entries):
        shutil.rmtree(spool_folder, ignore_errors=True)  # e.g. that of an empty Parquet file
        others = f" and by their first bytes among {in_words(entries.left_out)}" if entries.left_out else ""
        raise DatasetError(f"{path}: no images found (looked for {' '.join(EXTENSIONS)}{others}); {KINDS}")
    return entries


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Put the name of the source in front of errors."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error} ({error.filename}); {KINDS}") from None


def _find(path: Path, workers: int, progress: bool) -> Entries | SpoolSource:
    """The images of `path`, or the source to spool for them."""
    if path.parent.is_file():  # cifar-10-python.tar.gz/test_batch
        return cifar_source(path)
    files = _files(path)
    betons = [file for file in files if file.suffix.lower() == ".beton"]
    if betons:
        return _count_left_out(path, betons, _from_beton(_only(betons, "*.beton")))
    tars = [file for file in files if file.suffix.lower() == ".tar"]
    if tars:
        return _count_left_out(path, tars, tar_entries(tars, workers, progress))
    to_spool = _spool_source(path, files)
    if to_spool:
        return to_spool
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


def _count_left_out(path: Path, used: Sequence[Path], entries: Entries) -> Entries:
    """The entries, with `left_out` counting the other files in and below the folder `path` too."""
    if not path.is_dir():
        return entries
    left_out = Counter(entries.left_out)
    known = {str(each) for file in used for each in (file, file.with_suffix(".idx"))}
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name[0] != "."]
        visible = (name for name in files if name[0] != ".")
        left_out.update(extension(name) for name in visible if os.path.join(folder, name) not in known)
    return replace(entries, left_out=dict(left_out.most_common()))


def _spool_source(path: Path, files: list[Path]) -> SpoolSource | None:
    """The source to spool; None if `path` is of another kind."""
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
    """The file itself, or the files of a folder or pattern ('train-*.parquet'), sorted by name."""
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.name[0] != "." and entry.is_file())
    if path.exists():
        return [path]
    pattern = path.name.replace("[", "[[]")  # only `*` and `?` have a meaning in a pattern
    matches = sorted(entry for entry in path.parent.glob(pattern) if entry.is_file()) if "*" in path.name else []
    if not matches:
        raise DatasetError(f"no such file or folder; {KINDS}")
    return matches


# ---------------------------------------------------------------------------------------------- entries


def _from_spool(source: SpoolSource, folder: Path, workers: int, progress: bool) -> Entries:
    spooled = tar_entries(spool(source, folder, workers, progress), workers, progress)
    return replace(spooled, kind=source.kind, classes=source.classes, origin=source.origin())


def _from_beton(path: Path) -> Entries:
    beton = read_beton(path)
    rows, table = len(beton), converted_table(beton)  # a .beton has no class names, its table has
    shape = np.stack([beton.height, beton.width], axis=1) * beton.raw[:, None]
    keys = (f"{row:08d}" for row in range(rows))
    return Entries(
        path.parent, Names.of([path.name]), np.zeros(rows, np.int32), beton.offset, beton.length, beton.label,
        Names.of(keys), shape, table.classes if table else (), "beton", beton.digest,
    )  # fmt: skip


def _from_folder(root: Path) -> Entries:
    listing = list_folder(root, sniff=True)
    rows = len(listing.names)
    return Entries(
        root, listing.names, np.arange(rows, dtype=np.int32), np.zeros(rows, np.int64), np.full(rows, -1, np.int64),
        listing.label, unique_keys(os.path.splitext(name)[0] for name in listing.names), np.zeros((rows, 2), np.int32),
        listing.classes, "folder", listing.fingerprint(), left_out=listing.left_out,
    )  # fmt: skip
