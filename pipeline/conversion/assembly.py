"""Assembles the parts to OUT: a .beton, a folder of shards, or a table. OUT appears complete, in one step."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import sync
from common.progress import progress_bar
from pipeline.conversion.beton_writer import ARRAY_SAMPLE, SAMPLE, Samples, join, layout, page_size, pieces
from pipeline.conversion.entries import Entries
from pipeline.conversion.estimate import stored_bytes
from pipeline.conversion.packing import Part, load_part, record_path
from pipeline.conversion.report import Report, save_report
from pipeline.conversion.rewrite import Options
from pipeline.dataset.beton import read_beton
from pipeline.dataset.table import DatasetError, SampleTable, State

COLUMNS = ("width", "height", "label", "state")


class Layout(NamedTuple):
    """Positions in a .beton: page size, start of each image, (start, bytes) of each part's pieces, allocation table."""

    page: int
    starts: NDArray[np.int64]
    pieces: list[list[tuple[int, int]]]
    allocations: int


def beton_layout(parts: list[Part], options: Options) -> Layout:
    counts = [len(part.columns["length"]) for part in parts]
    sizes = np.concatenate([part.columns["length"] for part in parts])
    page = page_size(int(sizes.max(initial=1)))
    starts, allocations = layout(sizes, page, ARRAY_SAMPLE if options.pixels.native else SAMPLE)
    borders = np.cumsum(counts)[:-1]
    pairs = zip(np.split(starts, borders), np.split(sizes, borders), strict=True)
    return Layout(page, starts, [pieces(*pair) for pair in pairs], allocations)


def joined_parts(
    folder: Path, out: Path, count: int, options: Options
) -> dict[int, tuple[Path, list[tuple[int, int]]]]:
    """The parts of a .beton whose joining was interrupted: part number -> file and pieces. {} without such a file."""
    path = folder / out.name
    if not path.exists():
        return {}
    try:
        parts = [load_part(record_path(folder, number)) for number in range(count)]
    except DatasetError:
        path.unlink()
        return {}
    return {number: (path, pieces) for number, pieces in enumerate(beton_layout(parts, options).pieces)}


def finish_beton(
    folder: Path, out: Path, entries: Entries, parts: list[Part], report: Report, options: Options, progress: bool
) -> None:
    """Join the parts and move the .beton to its place, after its table and report."""
    positions, pixels = beton_layout(parts, options), options.pixels
    if pixels.native:
        pixels = replace(pixels, layout="hwc", stored=np.dtype(pixels.dtype).newbyteorder("<").str)
    columns = gathered(parts, ("offset", "length", *COLUMNS)) | {"offset": positions.starts}
    raw, blobs = columns["state"] == State.RAW, (columns["offset"], columns["length"])
    samples = Samples(raw, columns["width"], columns["height"], columns["label"], *blobs)
    files = [folder / "data" / next(iter(part.files)) for part in parts]
    sources = list(zip(files, positions.pieces, strict=True))
    with progress_bar(int(columns["length"].sum()), f"joining {out.name}", "B", progress) as bar:
        digest = join(folder / out.name, samples, sources, positions.page, positions.allocations, bar.update, pixels)
    container, fingerprint = np.zeros(len(raw), np.int32), read_beton(folder / out.name).fingerprint()
    about: dict[str, Any] = {"classes": entries.classes, "fingerprint": fingerprint, "left_out": lost(report)}
    table = SampleTable(folder, (out.name,), container, pixels=pixels, **about, **columns)
    table.save(folder / f"{out.stem}.npz", {out.name: digest})
    save_report(report, folder / f"{out.stem}.report.json")
    names = [f"{out.stem}.report.json", f"{out.stem}.json", f"{out.stem}.npz", out.name]
    if entries.kind == "tiles":  # a .beton has no names, which tell where a tile is from
        rows = gathered(parts, ("rows",))["rows"]
        (folder / f"{out.stem}.tiles.txt").write_text("".join(f"{entries.keys[row]}\n" for row in rows.tolist()))
        names.insert(0, f"{out.stem}.tiles.txt")
    for name in names:
        os.replace(folder / name, out.parent / name)
    sync(out.parent)


def finish_shards(
    folder: Path, out: Path, entries: Entries, parts: list[Part], report: Report, options: Options, progress: bool
) -> None:
    """Number the shards without gaps (a part without readable images has no shard) and rename their folder."""
    data = folder / "data"
    names: list[str] = []
    digests: dict[str, str] = {}
    for part in filter(lambda part: part.files, parts):
        (index, _), (shard, (_, digest)) = sorted(part.files.items())  # .idx, then .rec, .tar or .tfrecord
        names.append(f"{out.stem}-{len(names):06d}{Path(shard).suffix}")
        if shard != names[-1]:
            os.replace(data / index, (data / names[-1]).with_suffix(".idx"))
            os.replace(data / shard, data / names[-1])
        digests[names[-1]] = digest
    lengths = [len(part.columns["rows"]) for part in parts if part.files]
    container = np.repeat(np.arange(len(names), dtype=np.int32), lengths)
    columns = gathered(parts, ("offset", "length", *COLUMNS))
    pixels = replace(options.pixels, layout="hwc") if options.pixels.native else options.pixels
    about: dict[str, Any] = {"classes": entries.classes, "left_out": lost(report), "pixels": pixels}
    table = SampleTable(data, names, container, **about, **columns)
    table.save(data / "table.npz", digests)
    save_report(report, data / "report.json")
    os.rename(data, out)
    sync(out.parent)


def finish_index(
    folder: Path, out: Path, entries: Entries, parts: list[Part], report: Report, options: Options, progress: bool
) -> None:
    """Save the table of all rows in the order of the source, with the quarantine; its root is the source itself."""
    rows = np.concatenate([part.columns["rows"] for part in parts])
    readable = gathered(parts, ("length", "width", "height", "state"))
    columns: dict[str, Any] = {name: np.zeros(len(entries), column.dtype) for name, column in readable.items()}
    columns["length"] = np.maximum(entries.length, 0)
    columns["state"][:] = State.QUARANTINED
    for name, column in readable.items():
        columns[name][rows] = column
    if entries.bands is not None:  # the parts have the bytes of all files of an image
        columns["length"] = stored_bytes(entries, np.arange(len(entries)))
    table = SampleTable(
        entries.root, entries.files, entries.file, entries.offset, label=entries.label, classes=entries.classes,
        quarantine={row: reason for part in parts for row, reason in part.bad.items()},
        fingerprint=entries.fingerprint(), left_out=lost(report, in_table=True),
        pixels=entries.pixels if entries.pixels.stored else options.pixels,
        bands=with_lengths(entries), **columns,
    )  # fmt: skip
    if out.suffix == ".npz":
        table.save(folder / out.name)
        save_report(report, folder / f"{out.stem}.report.json")
        for name in (f"{out.stem}.report.json", f"{out.stem}.json", out.name):
            os.replace(folder / name, out.parent / name)
    else:
        table.save(folder / "data" / "table.npz")
        save_report(report, folder / "data" / "report.json")
        os.rename(folder / "data", out)
    sync(out.parent)


def with_lengths(entries: Entries) -> NDArray[np.int64] | None:
    """The further files of images of several bands, with the lengths of whole files."""
    if entries.bands is None:
        return None
    bands = entries.bands.copy()
    for row, band in np.argwhere(bands[..., 2] < 0).tolist():
        bands[row, band, 2] = (entries.root / entries.files[bands[row, band, 0]]).stat().st_size
    return bands


def lost(report: Report, in_table: bool = False) -> dict[str, int]:
    """Numbers of the files of the source that have no row, by kind. in_table: whether quarantined images have rows."""
    counts = Counter(report.left_out) + Counter(report.refused.values())
    return dict((counts + Counter(() if in_table else report.quarantined.values())).most_common())


def gathered(parts: list[Part], names: tuple[str, ...]) -> dict[str, Any]:
    """The columns `names` of all parts, concatenated."""
    return {name: np.concatenate([part.columns[name] for part in parts]) for name in names}
