"""Conversion of any source of images into a .beton, shards (WebDataset, TFRecord, RecordIO) or a bare table.

    python -m pipeline.convert SRC OUT --format beton|wds|tfrecord|recordio|index
        [--short N | --long N] [--quality Q] [--raw]

    source -> rows in one random order -> parts, in many processes or on Ray -> one file or folder, and its table

Rows are split into parts by number alone, and a part's bytes are a function of its rows and the options, so the result
does not depend on processes, machines or restarts. Everything is made in `.OUT.partial`. After a kill the same command
continues, and OUT is complete or does not exist. The report names each image that was left out.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from common.cli import EXIT_MISTAKE, EXIT_SIGNAL, Parser, UserError, note, print_error
from common.files import lock, write_atomically
from common.processes import in_processes
from common.progress import progress_bar
from common.signals import ENDING, Stopped
from pipeline.conversion.assembly import finish_beton, finish_index, finish_shards, joined_parts
from pipeline.conversion.channels.kind import kind_of
from pipeline.conversion.entries import Entries
from pipeline.conversion.estimate import check_room, expect
from pipeline.conversion.fetched import fetched
from pipeline.conversion.packing import Task, load_part, make_part, record_path, select_rows
from pipeline.conversion.recordio_writer import LARGEST_LABEL
from pipeline.conversion.report import Report, make_report, save_report, show
from pipeline.conversion.rewrite import QUALITY, Options
from pipeline.conversion.sources import open_source
from pipeline.conversion.spool import SpoolSource
from pipeline.conversion.tiling.grid import Tiling, check_tiling
from pipeline.dataset.finding.choice import NOT_CHOSEN, Choice, channels_of
from pipeline.dataset.table import DatasetError, count_reasons
from pipeline.remote.address import is_remote

VERSION = 2  # changes when the same rows and options give other bytes
SHARDS = ("wds", "tfrecord", "recordio")  # formats whose OUT is a folder of shards
FORMATS = ("beton", *SHARDS, "index")
SEED = 31
PART_BYTES = 1 << 28
PART_IMAGES = 16_384  # maximum, so that small images keep several processes busy


def convert(
    source: Path | str,
    out: Path,
    options: Options,
    *,
    seed: int | None = SEED,
    shard_images: int | None = None,
    shard_bytes: int = PART_BYTES,
    workers: int | None = None,
    ray: str | None = None,
    max_bad_fraction: float = 1.0,
    progress: bool = True,
    choice: Choice = NOT_CHOSEN,
    cache: Path | None = None,
    tiling: Tiling | None = None,
) -> Report:
    """Convert `source` to `out`, which must not exist. Raises DatasetError with one line.

    seed: of the order in which rows are packed; None keeps the order of the source (as an index always does).
    shard_images, shard_bytes: rows, or approximate bytes, of a part; workers: processes (default: one per CPU).
    ray: 'auto', 'local' or the address of a cluster whose nodes share this file system.
    max_bad_fraction: a larger fraction of unreadable images is an error. choice: of images and labels, where samples
    have several. cache: folder for what is fetched from a bucket or web server, kept; None: beside OUT, deleted at the
    end. tiling: cut each image into tiles.
    """
    out, cache = Path(out).absolute(), cache and Path(cache).absolute()
    check(out, options)
    if tiling is not None:
        check_tiling(tiling)
    if not 0 <= max_bad_fraction <= 1:
        raise DatasetError(f"--max-bad-fraction={max_bad_fraction}: give a number from 0 to 1")
    workers = workers or len(os.sched_getaffinity(0))
    remote = is_remote(source)
    if remote and options.format == "index" and cache is None:
        raise DatasetError("--format=index of images elsewhere: give --cache DIR, where they are fetched to and stay")
    name = str(source if remote else Path(source).absolute())
    with unfinished(out) as folder:
        check(out, options)  # again: another process may just have finished it
        # ------------------------------------------------------------------ source
        may_spool = partial(check_spool, folder, options)
        path = fetched(name, cache or folder / "fetched", workers, progress) if remote else Path(name)
        entries = open_source(path, folder / "spool", workers, progress, may_spool, choice, tiling)
        pixels, size = kind_of(entries, options, choice)
        options = replace(options, pixels=pixels, size=size)
        if pixels.native and progress:
            note(f"{name}: {pixels}, which OUT keeps" + "; --channels rgb makes 8-bit RGB of them" * (tiling is None))
        expected = expect(entries, options, shard_bytes)
        try:
            check_room(folder, expected.out + expected.additional, ("data/*", "*.beton"))
        except DatasetError:
            if not any(folder.glob("parts/*.npz")):
                shutil.rmtree(folder / "spool", ignore_errors=True)
            raise

        # ------------------------------------------------------------------ parts
        per_part = shard_images or int(np.clip(shard_bytes / expected.image, 1, PART_IMAGES))
        check_labels(entries, options)
        rows = packing_order(len(entries), None if options.format == "index" else seed)
        count = -(-len(rows) // per_part)
        resume(folder, count, describe(entries, options, seed, per_part))
        joined = joined_parts(folder, out, count, options)

        def tasks() -> Iterator[Task]:
            for number in range(count):
                part = rows[number * per_part : (number + 1) * per_part]
                stem = f"{out.stem}-{number:06d}"
                yield Task(folder, number, stem, part, select_rows(entries, part), options, joined.get(number))

        if ray is None:
            results = in_processes(make_part, tasks(), min(workers, count), "--workers")
        else:
            from pipeline.conversion.ray_cluster import on_ray

            results = on_ray(make_part, tasks(), ray, workers)
        with progress_bar(len(entries), f"converting to {options.format}", "img", progress) as bar:
            for done in results:
                bar.update(done)

        # ------------------------------------------------------------------ report
        parts = [load_part(record_path(folder, number)) for number in range(count)]
        report = make_report(name, out, entries, parts)
        if not report.written or len(report.quarantined) > max_bad_fraction * len(entries):
            save_report(report, folder / "report.json")
            bad = f"{len(report.quarantined)} of {len(entries)} images cannot be read"
            names = f"({count_reasons(report.quarantined)}), their names are in {folder / 'report.json'}"
            raise DatasetError(f"{name}: {bad} {names}; repair the source")

        # ------------------------------------------------------------------ OUT
        finish = {"beton": finish_beton, "index": finish_index}.get(options.format, finish_shards)
        finish(folder, out, entries, parts, report, options, progress)
    return report


# ---------------------------------------------------------------------------------------------- checks


def check(out: Path, options: Options) -> None:
    """Raise DatasetError for settings that contradict each other and for an OUT that exists."""
    if options.format not in FORMATS:
        raise DatasetError(f"--format={options.format}: give one of {' '.join(FORMATS)}")
    if options.short is not None and options.long is not None:
        raise DatasetError(f"--short={options.short} and --long={options.long}: give one of the two")
    for name, value, low, high in (
        ("short", options.short, 1, 65_500), ("long", options.long, 1, 65_500), ("quality", options.quality, 1, 100),
    ):  # fmt: skip
        if value is not None and not low <= value <= high:
            raise DatasetError(f"--{name}={value}: give a number from {low} to {high}")
    if options.raw and options.format != "beton":
        raise DatasetError(f"--raw with --format={options.format}: only a .beton can hold raw pixels; leave --raw out")
    if options.raw and options.quality is not None:
        raise DatasetError(f"--quality={options.quality} with --raw: pixels have no quality; leave one of the two out")
    if options.format == "index" and (options.short or options.long or options.quality):
        raise DatasetError("--short, --long or --quality with --format=index: an index copies nothing; leave them out")
    if options.format == "beton" and out.suffix != ".beton":
        raise DatasetError(f"OUT={out}: a file for --format=beton must be called *.beton")
    if options.format in SHARDS and out.suffix in (".beton", ".npz", ".tar", ".tfrecord", ".rec"):
        raise DatasetError(f"OUT={out}: give the name of a new folder for --format={options.format}")
    partial = out.with_name(f".{out.name}.partial").exists()  # a killed run may have put the tables in place
    tables = [out.with_suffix(".npz"), out.with_suffix(".json")] if out.suffix in (".beton", ".npz") else []
    for path in [out, *([] if partial else tables)]:
        if path.exists() and not (path == out and path.is_dir() and not any(path.iterdir())):
            raise DatasetError(f"OUT={path}: already exists; remove it or give another name")


def check_labels(entries: Entries, options: Options) -> None:
    """Raise DatasetError for a class number that RecordIO's float32 does not hold exactly."""
    largest = int(entries.label.max(initial=-1))
    if options.format == "recordio" and largest > LARGEST_LABEL:
        problem = f"stores labels as float32, which is not exact for {largest}"
        raise DatasetError(f"--format=recordio: {problem}; take tfrecord")


def check_spool(folder: Path, options: Options, source: SpoolSource) -> None:
    """Raise DatasetError if spooling a source would be useless or needs more room than the disk has.

    OUT counts with its minimum size; it is estimated after spooling, when images can be sampled.
    """
    if options.format == "index":
        problem = f"images from {source.kind} files are unpacked, so there is nothing to index"
        raise DatasetError(f"--format=index: {problem}; take another format")
    copies = 1 if options.short or options.long or options.quality else 2
    note = f" ({source.bytes / 1e9:.1f} GB of it to unpack the source)"
    check_room(folder, copies * source.bytes, ("spool/*.tar", "data/*", "*.beton"), note)


# ---------------------------------------------------------------------------------------------- resuming


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """The folder `.OUT.partial`, locked by this process; removed at the end, or after a failure if it has no files."""
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(folder / "lock", wait=False)
    except BlockingIOError:
        raise DatasetError(f"OUT={out}: another conversion is writing it; wait or give another name") from None
    with held:
        try:
            yield folder
        except BaseException:
            if not any(path.is_file() and path.name not in ("lock", ".lock") for path in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def describe(entries: Entries, options: Options, seed: int | None, per_part: int) -> dict[str, Any]:
    """Everything that the bytes of a part depend on."""
    import PIL

    source = {"source": entries.fingerprint(), "seed": seed, "images of a part": per_part}
    run = source | asdict(options) | {"version": VERSION, "Pillow": PIL.__version__}
    return json.loads(json.dumps(run))  # tuples as it is read again


def resume(folder: Path, count: int, run: dict[str, Any]) -> None:
    """Keep the parts of a killed run if its description equals `run`, else remove them; prints which."""
    stamp = folder / "run.json"
    try:
        before = json.loads(stamp.read_text())
    except (OSError, ValueError):
        before = {}
    parts = len(list((folder / "parts").glob("*.npz")))
    if before == run:
        if parts:
            note(f"resuming: {parts} of {count} parts exist, their digests are checked")
    else:
        changed = ", ".join(name for name in run if before.get(name) != run[name])
        if parts:
            note(f"starting over: {parts} parts exist, but of another conversion ({changed})")
        stamp.unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.name not in ("fetched", "spool", "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / "making", ignore_errors=True)
    for name in ("parts", "data", "making"):
        (folder / name).mkdir(exist_ok=True)
    write_atomically(stamp, json.dumps(run))


def packing_order(rows: int, seed: int | None) -> Int64[np.ndarray, " rows"]:
    """The permutation in which rows are packed; the order of the source if `seed` is None.

    It sorts raw Philox numbers: NumPy guarantees their stream for ever, but not that of `Generator.permutation`.
    """
    if seed is None:
        return np.arange(rows)
    return np.argsort(np.random.Philox(key=seed).random_raw(rows), kind="stable")


# ---------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("python -m pipeline.convert", (__doc__ or "").splitlines()[0])
    kinds = "folder, tars, Parquet, Arrow, IDX, CIFAR, .beton, table; also at s3://, gs://, hf://, https://"
    parser.add_argument("source", metavar="SRC", type=expanduser, help=kinds)
    parser.add_argument("out", metavar="OUT", type=expanduser, help="x.beton, a new folder of shards, or x.npz (index)")
    parser.add_argument("--format", required=True, help=f"{', '.join(FORMATS)} (see docs/data.md)")
    parser.add_argument("--short", type=int, metavar="N", help="shrink so that the short side is at most N pixels")
    parser.add_argument("--long", type=int, metavar="N", help="shrink so that the long side is at most N pixels")
    parser.add_argument(
        "--quality", type=int, metavar="Q",
        help="re-encode every JPEG with quality Q. Without it a JPEG's bytes stay, except for shrunk ones and, in a "
        ".beton, for those that EXIF rotates, that are not YCbCr or gray (CMYK) or whose EXIF is damaged: these and "
        f"all other formats get quality {QUALITY} there; shards store other images that they have to change as PNG",
    )  # fmt: skip
    parser.add_argument("--raw", action="store_true", help="store pixels instead of JPEGs (beton): no decoding later")
    parser.add_argument("--tile", type=int, metavar="N", help="cut each image into tiles of N x N pixels")
    parser.add_argument("--overlap", type=int, metavar="N", help="pixels that neighboring tiles share (default 0)")
    parser.add_argument(
        "--keep",
        metavar="RULES",
        help="only tiles whose mean, std, min or max are so, in values of the file: 'std>8,mean<230'",
    )
    parser.add_argument("--seed", default=str(SEED), help="of the shuffle (default %(default)s); none keeps the order")
    parser.add_argument("--shard-images", type=int, metavar="N", help="images of a shard or part")
    parser.add_argument("--shard-size", default="256MiB", help="approximate bytes of one (default %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per CPU)")
    parser.add_argument(
        "--ray", metavar="auto|local|ADDRESS",
        help="auto: join the Ray cluster of RAY_ADDRESS or of this machine, else start one here (as local does); "
        "ADDRESS: join the cluster at host:port",
    )  # fmt: skip
    parser.add_argument(
        "--image", metavar="NAME",
        help="which image of a sample: a column, a field, or suffixes of files (jpg,png); all: every file",
    )  # fmt: skip
    parser.add_argument(
        "--label", metavar="NAME",
        help="where labels are: a column, a field, a suffix of members or a name in their .json; none: leave them out",
    )  # fmt: skip
    parser.add_argument(
        "--channels", metavar="auto|rgb|N", default="auto",
        help="rgb: images become pictures in 8-bit RGB; N: they keep N channels and their depth, as arrays in a .beton "
        "and .npy in shards; auto (the default): they do if most of them are more than 8-bit RGB shows",
    )  # fmt: skip
    parser.add_argument("--bands", help="an image is several files: words of their names, e.g. B02,B03,B08")
    parser.add_argument("--layout", default="auto", choices=("auto", "hwc", "chw"), help="as data.layout")
    parser.add_argument("--pages", default="channels", choices=("channels", "images"), help="as data.pages")
    parser.add_argument("--images-in", metavar="DIR", type=expanduser, help="paths in Parquet may lead there, too")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="keep there what is fetched from a bucket or web server (default: beside OUT, deleted at the end)",
    )  # fmt: skip
    parser.add_argument("--max-bad-fraction", type=float, default=1.0, help="more bad images are an error (default 1)")
    given = parser.parse_args(arguments)
    for sign in ENDING:
        signal.signal(sign, stop)
    try:
        seed = None if given.seed == "none" else positive("seed", given.seed, 0)
        choice = Choice(given.image, given.label, channels_of(given.channels), given.layout, bands=given.bands)
        choice = choice._replace(pages=given.pages, images_in=given.images_in)
        if given.images_in and not Path(given.images_in).is_dir():
            raise DatasetError(f"--images-in={given.images_in}: no such folder")
        report = convert(
            given.source, Path(given.out),
            Options(given.format, given.short, given.long, given.quality, given.raw),
            seed=seed,
            shard_images=None if given.shard_images is None else positive("shard-images", given.shard_images),
            shard_bytes=parse_size(given.shard_size),
            workers=None if given.workers is None else positive("workers", given.workers),
            ray=given.ray, max_bad_fraction=given.max_bad_fraction, choice=choice,
            cache=given.cache, tiling=tiling_of(given),
        )  # fmt: skip
    except KeyboardInterrupt as stopped:
        note("stopped; the same command continues from here")
        return EXIT_SIGNAL + (stopped.args[0] if stopped.args else signal.SIGINT)
    except UserError as error:
        print_error(error)
        return EXIT_MISTAKE
    except OSError as error:
        print_error(f"{error.strerror or error} ({error.filename or given.out}); repair it, the same command continues")
        return EXIT_MISTAKE
    out = Path(given.out)
    file = out.with_name(f"{out.stem}.report.json") if out.suffix in (".beton", ".npz") else out / "report.json"
    show(report, str(file))
    return 0


def tiling_of(given: Any) -> Tiling | None:
    """The tiles that the arguments ask for. Raises DatasetError."""
    if given.tile is not None:
        return Tiling(given.tile, given.overlap or 0, given.keep or "")
    for name in ("overlap", "keep"):
        if (value := getattr(given, name)) is not None:
            raise DatasetError(f"--{name}={value}: it is of tiles; give --tile too")
    return None


def stop(number: int, frame: Any) -> None:
    """Handle SIGINT and SIGTERM: end the workers at once, since unfinished parts are made again anyway."""
    for sign in ENDING:
        signal.signal(sign, signal.SIG_IGN)  # a second signal would disturb the cleanup
    for child in multiprocessing.active_children():
        child.terminate()
    raise Stopped(number)


def positive(name: str, text: Any, least: int = 1) -> int:
    if not re.fullmatch("[0-9]{1,18}", str(text)) or int(text) < least:
        raise DatasetError(f"--{name}={text}: give a whole number from {least} on")
    return int(text)


def parse_size(text: str) -> int:
    """'256MiB', '1GiB', '500MB' or a number of bytes."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    number = text.rstrip("KMGiB")
    if not re.fullmatch("[0-9]{1,18}", number) or int(number) < 1 or text[len(number) :] not in units:
        raise DatasetError(f"--shard-size={text}: give a number with MiB, GiB, MB or GB, e.g. 256MiB")
    return int(number) * units[text[len(number) :]]


if __name__ == "__main__":
    sys.exit(main())
