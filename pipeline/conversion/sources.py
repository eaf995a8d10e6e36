"""Lists any source of images as byte ranges of files, without decoding them.

    folder of images | tar, also of tars | WebDataset | TFRecord | RecordIO | MDS | LitData | LMDB | HDF5
    | Parquet, Arrow, Lance | IDX | CIFAR | .beton | a sample table

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
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from common.cli import note
from pipeline.conversion.arrays import cifar_source, idx_source
from pipeline.conversion.columnar import columnar_below, columnar_source
from pipeline.conversion.entries import Entries
from pipeline.conversion.hdf5 import hdf5_source
from pipeline.conversion.keys import unique_keys
from pipeline.conversion.record_samples import record_samples
from pipeline.conversion.spool import TAR_BYTES, SpoolSource, spool
from pipeline.conversion.tar_entries import tar_entries
from pipeline.conversion.tiling.grid import Tiling
from pipeline.conversion.tiling.source import tile_source
from pipeline.dataset.beton import converted_table, read_beton
from pipeline.dataset.channels.format import PixelFormat
from pipeline.dataset.finding.ambiguous import check_folder, classes_in_doubt
from pipeline.dataset.finding.choice import ALL, NONE, NOT_CHOSEN, PAGES, Choice, check_bands, check_choice, check_pages
from pipeline.dataset.finding.find import ARCHIVES, RECORDS, find_source, left_out_beside, sources_below
from pipeline.dataset.finding.layout import find_split, unused
from pipeline.dataset.folder import Listing, images_of, list_folder
from pipeline.dataset.inside.frames import by_frame, frames_of
from pipeline.dataset.inside.names import file_of
from pipeline.dataset.records.images import record_images
from pipeline.dataset.sniff import EXTENSIONS, in_words
from pipeline.dataset.table import DatasetError, Names, SampleTable, State
from pipeline.dataset.tar_images import list_shards

KINDS = (
    "give a folder of images, *.tar, *.tfrecord, *.rec, *.mds, LitData, LMDB, *.h5, *.parquet, *.arrow, Lance, "
    "an IDX pair, CIFAR's Python files, a .beton or a table"
)
OPTIONS = {
    "data.path=": "SRC=",
    "data.image": "--image",
    "data.label": "--label",
    "data.bands": "--bands",
    "data.pages": "--pages",
    "data.channels": "--channels",
}  # instead of the recipe's settings


def open_source(
    path: Path,
    spool_folder: Path,
    workers: int = 1,
    progress: bool = True,
    check: Callable[[SpoolSource], None] = lambda source: None,
    choice: Choice = NOT_CHOSEN,
    tiling: Tiling | None = None,
) -> Entries:
    """All images of `path`, in a fixed order: a file or folder of any kind named above, or a pattern of files.

    spool_folder: for the tars of sources without byte ranges; tars from a killed run are used again. workers: processes
    that list and spool. check: called before a source is spooled, and may raise. choice: of images and labels, where
    samples have several. tiling: cut each image into tiles. Raises DatasetError with one line.
    """
    path = Path(path).absolute()
    with _errors_name(path):
        if tiling is None:
            source = _find(path, workers, progress, choice)
        else:
            source = tile_source(*_large_images(path, choice), tiling, choice, workers, progress)
    if isinstance(source, SpoolSource):
        check(source)
        with _errors_name(path):
            entries = _count_left_out(path, source.files, _from_spool(source, Path(spool_folder), workers, progress))
    else:
        entries = source
    if choice.label == NONE:
        entries = replace(entries, label=np.full(len(entries), -1, np.int32), classes=())
    if not len(entries):
        shutil.rmtree(spool_folder, ignore_errors=True)  # e.g. that of an empty Parquet file
        others = f" and by their first bytes among {in_words(entries.left_out)}" if entries.left_out else ""
        found = f"no images found (looked for {' '.join(EXTENSIONS)}{others}){sources_below(path)}"
        raise DatasetError(f"{path}: {found}; {KINDS}")
    return entries


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Put the name of the source in front of errors, and the options of conversion in place of settings."""
    try:
        yield
    except DatasetError as error:
        message = str(error)
        for setting, option in OPTIONS.items():
            message = message.replace(setting, option)
        raise DatasetError(f"{path}: {message}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error} ({error.filename}); {KINDS}") from None


def _find(path: Path, workers: int, progress: bool, choice: Choice) -> Entries | SpoolSource:
    """The images of `path`, or the source to spool for them."""
    train, test = find_split(path)
    if test is not None:
        others = "".join(f", {name}" for name in unused(path, train, test))
        named = f"{train.relative_to(path)}, {test.relative_to(path)}{others}"
        raise DatasetError(f"holds several splits ({named}); name one, e.g. make convert SRC='{train}' ...")
    path = train
    kind, files = find_source(path, KINDS)
    check_choice(kind, choice)
    check_bands(kind, choice)
    check_pages(kind, choice)
    if kind == "table":
        return _from_table(files[0])
    if kind == "beton":
        return _count_left_out(path, files, _from_beton(_only(files, "*.beton"), choice))
    if kind == "tar":
        return _count_left_out(path, files, tar_entries(files, workers, progress, choice))
    if kind in RECORDS:
        records = _from_records(kind, files, workers, progress, choice)
        return records if isinstance(records, SpoolSource) else _count_left_out(path, files, records)
    if kind in ("parquet", "arrow", "lance"):
        return columnar_source(files, choice=choice)
    if kind == "hdf5":
        return hdf5_source(files, choice)
    if kind == "idx":
        return idx_source(_only(files, "*-images-idx3-ubyte"))
    if kind == "cifar":
        return cifar_source(files[0])
    if not kind:
        raise DatasetError(f"not a source of images; {KINDS}")
    listing = _listed(path.resolve(), choice)
    if progress and (doubt := classes_in_doubt(path, listing.names, listing.classes)):
        note(f"{path}: {doubt.partition(';')[0]}; if these are the classes, convert one of them")
    entries = _from_folder(path.resolve(), listing, workers, progress, choice.pages == PAGES)
    below = columnar_below(path)
    if below and len(entries):
        problem = f"holds {below[0].relative_to(path)} and other {below[0].suffix} files beside {len(entries)} images"
        raise DatasetError(f"{problem}; name those that you mean, e.g. SRC='{below[0].parent}/*{below[0].suffix}'")
    if below:
        return columnar_source(below, path, choice)
    packed = sorted(entry.name for entry in path.iterdir() if entry.name.lower().endswith(ARCHIVES))
    if packed and not len(entries):
        raise DatasetError(
            f"holds compressed archives ({packed[0]}, ...), whose images have no byte range; unpack them"
        )
    return entries


def _count_left_out(path: Path, used: Sequence[Path], entries: Entries) -> Entries:
    """The entries, with `left_out` counting the other files in and below the folder `path` too."""
    left_out = Counter(entries.left_out) + left_out_beside(path, used)
    return replace(entries, left_out=dict(left_out.most_common()))


def _only(files: list[Path], pattern: str) -> Path:
    if len(files) > 1:
        raise DatasetError(f"holds {len(files)} {pattern} ({', '.join(file.name for file in files)}); name one of them")
    return files[0]


# ---------------------------------------------------------------------------------------------- entries


def _from_spool(source: SpoolSource, folder: Path, workers: int, progress: bool) -> Entries:
    if source.note:
        note(source.note)
    spooled = tar_entries(spool(source, folder, workers, progress), workers, progress, Choice(ALL))  # chosen before
    return replace(
        spooled, kind=source.kind, classes=source.classes, origin=source.origin(), left_out=source.left_out,
        pixels=PixelFormat(layout="hwc"),
    )  # fmt: skip


def _from_records(
    kind: str, files: Sequence[Path], workers: int, progress: bool, choice: Choice
) -> Entries | SpoolSource:
    root, listing = list_shards(files)
    images = record_images(kind, root, listing.names, choice, workers, progress, "--workers")
    if images.no_range:
        read = partial(record_samples, kind=kind, choice=choice, classes=images.classes)
        size = int(images.length.sum()) + TAR_BYTES * len(images.length)
        return SpoolSource(
            kind, [str(path) for path in files], files, read, size, images.classes, left_out=images.left_out
        )
    keys = unique_keys(os.path.splitext(key)[0] for key in images.keys)
    return Entries(
        root, listing.names, images.file, images.offset, images.length, images.label, keys, images.shape,
        images.classes, kind, listing.fingerprint(), left_out=images.left_out,
    )  # fmt: skip


def _from_beton(path: Path, choice: Choice) -> Entries:
    beton = read_beton(path, choice)
    rows, table = len(beton), converted_table(beton)  # numbers have no class names, the table of a conversion does
    shape = np.stack([beton.height, beton.width], axis=1) * (beton.raw | beton.pixels.native)[:, None]
    keys = (f"{row:08d}" for row in range(rows))
    return Entries(
        path.parent, Names.of([path.name]), np.zeros(rows, np.int32), beton.offset, beton.length, beton.label,
        Names.of(keys), shape, table.classes if table else beton.classes, "beton", beton.digest,
        left_out=beton.left_out, pixels=beton.pixels,
    )  # fmt: skip


def _from_table(path: Path) -> Entries:
    """The images of a table that conversion wrote: of shards with their class names, or of an index."""
    table = SampleTable.load(path)
    rows = len(table)
    raw = (table.state == (State.ARRAY if table.pixels.stored else State.RAW))[:, None]
    names = (table.name(row).rpartition(":")[2] for row in range(rows))
    return Entries(
        table.root, Names.of(table.containers), table.container, table.offset,
        np.where(table.loose, -1, table.length).astype(np.int64), table.label,
        unique_keys(os.path.splitext(name)[0] for name in names),
        np.stack([table.height, table.width], axis=1) * raw, table.classes, "table", table.digest(),
        left_out=dict(table.left_out or {}), pixels=table.pixels, bands=table.bands,
    )  # fmt: skip


def _large_images(path: Path, choice: Choice) -> tuple[Path, Listing]:
    """The folder and the listing of the images to tile: those of a folder, of a pattern, or one file."""
    if path.is_dir():
        return path.resolve(), _listed(path.resolve(), choice)
    is_pattern = "*" in path.name or "?" in path.name
    matches = sorted(path.parent.glob(path.name.replace("[", "[[]"))) if is_pattern else [path]
    if not matches or not all(match.is_file() for match in matches):
        raise DatasetError(f"no such file or folder; {KINDS}")
    return list_shards(matches)


def _listed(root: Path, choice: Choice) -> Listing:
    listing = images_of(root, list_folder(root), choice)
    check_folder(root, listing, choice)
    return listing


def _from_folder(root: Path, listing: Listing, workers: int, progress: bool, pages: bool) -> Entries:
    if listing.images is None and ((counts := frames_of(root, listing.names, workers, progress, pages)) > 1).any():
        return _from_frames(root, listing, counts)
    images = np.arange(len(listing.names))[:, None] if listing.images is None else listing.images
    rows, further = len(images), images[:, 1:]
    keys = (os.path.splitext(listing.names[file])[0] for file in images[:, 0])
    bands = np.stack([further, np.zeros_like(further), np.full_like(further, -1)], axis=-1)
    return Entries(
        root, listing.names, images[:, 0].astype(np.int32), np.zeros(rows, np.int64), np.full(rows, -1, np.int64),
        listing.label, unique_keys(keys), np.zeros((rows, 2), np.int32), listing.classes, "folder",
        listing.fingerprint(), left_out=listing.left_out, bands=None if listing.images is None else bands,
    )  # fmt: skip


def _from_frames(root: Path, listing: Listing, counts: Int64[np.ndarray, " n"]) -> Entries:
    """The images of a folder in which files have several frames or pages."""
    names, file, frame = by_frame(listing.names, counts)
    stems = [os.path.splitext(file_of(name))[0] for name in names]
    frames = zip(file.tolist(), frame.tolist(), strict=True)
    keys = (f"{stems[of]}-frame{number:04d}" if counts[of] > 1 else stems[of] for of, number in frames)
    return Entries(
        root, names, file.astype(np.int32), frame, np.full(len(file), -1, np.int64), listing.label[file],
        unique_keys(keys), np.zeros((len(file), 2), np.int32), listing.classes, "folder", listing.fingerprint(),
        left_out=listing.left_out,
    )  # fmt: skip
