"""Conversion of any source of images into a .beton, WebDataset shards or a bare table.

    python -m pipeline.convert SRC OUT --format beton|wds|index [--short N | --long N] [--quality Q] [--raw]

    source -> rows in one random order -> parts, in many processes or on Ray -> one file or folder, and its table

Rows are cut into parts by number alone, and a part's bytes are a function of its rows and the options: so the result
does not depend on processes, machines or restarts. Everything is made in `.OUT.partial`; the same command goes on
after a kill, and OUT is complete or not there. No image is lost silently: the report names each that was left out.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from common.cli import EXIT_MISTAKE, EXIT_SIGNAL, Parser, UserError, print_error
from common.files import lock, write_atomically
from common.processes import in_processes
from common.progress import progress_bar
from pipeline.conversion.assembly import finish_beton, finish_index, finish_shards, joined_parts
from pipeline.conversion.estimate import check_room, expect
from pipeline.conversion.packing import Task, load_part, make_part, record_path, take
from pipeline.conversion.report import Report, make_report, reasons, save_report, show
from pipeline.conversion.rewrite import QUALITY, Options
from pipeline.conversion.sources import Entries, open_source
from pipeline.conversion.spool import Foreign
from pipeline.dataset.table import DatasetError

VERSION = 2  # of the bytes that the same rows and options give
SEED = 31
PART_BYTES = 1 << 28
PART_IMAGES = 16_384  # at most, so that small images keep more than one process busy


def convert(
    source: Path,
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
) -> Report:
    """Convert `source` into `out`, which must not be there. Raises DatasetError with one line.

    seed: of the order in which rows are packed, None keeps the source's (as an index always does).
    shard_images, shard_bytes: rows of a part, or about its bytes; workers: processes (default: one a CPU).
    ray: 'auto', 'local' or the address of a cluster whose nodes share this file system.
    """
    source, out = Path(source).absolute(), Path(out).absolute()
    check(out, options)
    if not 0 <= max_bad_fraction <= 1:
        raise DatasetError(f"--max-bad-fraction={max_bad_fraction}: give a number from 0 to 1")
    workers = workers or len(os.sched_getaffinity(0))
    with unfinished(out) as folder:
        check(out, options)  # again: another process may have finished it just now
        # ------------------------------------------------------------------ what there is
        entries = open_source(source, folder / "spool", workers, progress, partial(check_spool, folder, options))
        expected = expect(entries, options, shard_bytes)
        try:
            check_room(folder, expected.out + expected.beyond, ("data/*", "*.beton"))
        except DatasetError:
            if not any(folder.glob("parts/*.npz")):
                shutil.rmtree(folder / "spool", ignore_errors=True)
            raise

        # ------------------------------------------------------------------ parts
        per_part = shard_images or int(np.clip(shard_bytes / expected.image, 1, PART_IMAGES))
        rows = packing_order(len(entries), None if options.format == "index" else seed)
        count = -(-len(rows) // per_part)
        resume(folder, count, describe(entries, options, seed, per_part))
        joined = joined_parts(folder, out, count)

        def tasks() -> Iterator[Task]:
            for number in range(count):
                part = rows[number * per_part : (number + 1) * per_part]
                name = f"{out.stem}-{number:06d}"
                yield Task(folder, number, name, part, take(entries, part), options, joined.get(number))

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
        report = make_report(source, out, entries, parts)
        if not report.written or len(report.quarantined) > max_bad_fraction * len(entries):
            save_report(report, folder / "report.json")
            told = f"{len(report.quarantined)} of {len(entries)} images cannot be read ({reasons(report.quarantined)})"
            raise DatasetError(f"{source}: {told}, their names are in {folder / 'report.json'}; mend the source")

        # ------------------------------------------------------------------ OUT
        finish = {"beton": finish_beton, "wds": finish_shards, "index": finish_index}[options.format]
        finish(folder, out, entries, parts, report, progress)
    return report


# ---------------------------------------------------------------------------------------------- checks


def check(out: Path, options: Options) -> None:
    """Raise DatasetError for settings that contradict each other and an OUT that is there."""
    if options.format not in ("beton", "wds", "index"):
        raise DatasetError(f"--format={options.format}: give beton, wds or index")
    if options.short is not None and options.long is not None:
        raise DatasetError(f"--short={options.short} and --long={options.long}: give one of the two")
    for name, value, low, high in (
        ("short", options.short, 1, 65_500), ("long", options.long, 1, 65_500), ("quality", options.quality, 1, 100),
    ):  # fmt: skip
        if value is not None and not low <= value <= high:
            raise DatasetError(f"--{name}={value}: give a number from {low} to {high}")
    if options.raw and options.format != "beton":
        raise DatasetError(f"--raw with --format={options.format}: only a .beton can hold raw pixels; leave it out")
    if options.raw and options.quality is not None:
        raise DatasetError(f"--quality={options.quality} with --raw: pixels have no quality; leave one of the two out")
    if options.format == "index" and (options.short or options.long or options.quality):
        raise DatasetError("--short, --long or --quality with --format=index: an index copies nothing; leave it out")
    if options.format == "beton" and out.suffix != ".beton":
        raise DatasetError(f"OUT={out}: a file for --format=beton must be called *.beton")
    if options.format == "wds" and out.suffix in (".beton", ".npz", ".tar"):
        raise DatasetError(f"OUT={out}: give the name of a new folder for --format=wds")
    partial = out.with_name(f".{out.name}.partial").exists()  # a killed run may have put the tables in place
    beside = [out.with_suffix(".npz"), out.with_suffix(".json")] if out.suffix in (".beton", ".npz") else []
    for path in [out, *([] if partial else beside)]:
        if path.exists() and not (path == out and path.is_dir() and not any(path.iterdir())):
            raise DatasetError(f"OUT={path}: is there already; remove it or give another name")


def check_spool(folder: Path, options: Options, source: Foreign) -> None:
    """Raise DatasetError, before a source is spooled, if that is of no use or takes more than the disk has.

    OUT is counted at the least that it will take, as it is estimated once there is something to take a sample of.
    """
    if options.format == "index":
        told = f"images from {source.kind} files cannot be read in place, so there is nothing to index"
        raise DatasetError(f"--format=index: {told}; take --format beton or wds")
    again = 0 if options.short or options.long or options.quality else 1
    what = f" ({source.bytes / 1e9:.1f} GB of it to unpack the source)"
    check_room(folder, (1 + again) * source.bytes, ("spool/*.tar", "data/*", "*.beton"), what)


# ---------------------------------------------------------------------------------------------- going on


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """The folder `.OUT.partial`, for this process alone; removed at the end, or after a failure if there is nothing
    in it to go on with."""
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(folder / "lock", wait=False)
    except OSError:
        raise DatasetError(f"OUT={out}: another conversion is writing it; wait for it or give another") from None
    with held:
        try:
            yield folder
        except BaseException:
            if not any(path.is_file() and path.name not in ("lock", ".lock") for path in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def describe(entries: Entries, options: Options, seed: int | None, per_part: int) -> dict[str, Any]:
    """All that the bytes of a part depend on."""
    import PIL

    source = {"source": entries.fingerprint(), "seed": seed, "images of a part": per_part}
    return source | asdict(options) | {"version": VERSION, "Pillow": PIL.__version__}


def resume(folder: Path, count: int, run: dict[str, Any]) -> None:
    """Keep the parts of a killed run that is described alike, else remove them; says which, if there were any."""
    stamp = folder / "run.json"
    try:
        before = json.loads(stamp.read_text())
    except (OSError, ValueError):
        before = {}
    there = len(list((folder / "parts").glob("*.npz")))
    if before == run:
        if there:
            say(f"going on: {there} of {count} parts are there, their digests are compared")
    else:
        changed = ", ".join(name for name in run if before.get(name) != run[name])
        if there:
            say(f"starting over: {there} parts were there, but of another conversion ({changed})")
        stamp.unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.name not in ("spool", "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / "making", ignore_errors=True)
    for name in ("parts", "data", "making"):
        (folder / name).mkdir(exist_ok=True)
    write_atomically(stamp, json.dumps(run))


def packing_order(rows: int, seed: int | None) -> Int64[np.ndarray, " rows"]:
    """The permutation in which rows are packed; the source's own order without a seed.

    Made by sorting raw Philox numbers: their stream is promised for ever, that of `Generator.permutation` is not.
    """
    if seed is None:
        return np.arange(rows)
    return np.argsort(np.random.Philox(key=seed).random_raw(rows), kind="stable")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("python -m pipeline.convert", (__doc__ or "").splitlines()[0])
    parser.add_argument("source", metavar="SRC", help="folder, tars, Parquet, Arrow, IDX, CIFAR, .beton")
    parser.add_argument("out", metavar="OUT", help="x.beton, a new folder of shards, or x.npz (index)")
    parser.add_argument("--format", required=True, help="beton, wds (tar shards) or index (a table; nothing is copied)")
    parser.add_argument("--short", type=int, metavar="N", help="shrink so that the short side is at most N pixels")
    parser.add_argument("--long", type=int, metavar="N", help="shrink so that the long side is at most N pixels")
    parser.add_argument(
        "--quality", type=int, metavar="Q",
        help="write every JPEG anew with quality Q. Without it a JPEG's bytes stay, but for those that are shrunk "
        "and, in a .beton, those that EXIF turns, that are not YCbCr or gray (CMYK) or whose EXIF is damaged: they "
        f"and all that is no JPEG get quality {QUALITY} there; wds stores losslessly as PNG what it has to change",
    )  # fmt: skip
    parser.add_argument("--raw", action="store_true", help="store pixels instead of JPEGs (beton): no decoding later")
    parser.add_argument("--seed", default=str(SEED), help="of the shuffle (default %(default)s), none keeps the order")
    parser.add_argument("--shard-images", type=int, metavar="N", help="images of a shard or part")
    parser.add_argument("--shard-size", default="256MiB", help="about the bytes of one (default %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one a CPU)")
    parser.add_argument(
        "--ray", metavar="auto|local|ADDRESS",
        help="auto: join the Ray cluster of RAY_ADDRESS or of this machine, or else start one here (local); "
        "or join the one at ADDRESS (host:port)",
    )  # fmt: skip
    parser.add_argument("--max-bad-fraction", type=float, default=1.0, help="more bad images are an error (default 1)")
    given = parser.parse_args(arguments)
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, stop)
    try:
        seed = None if given.seed == "none" else positive("seed", given.seed, 0)
        report = convert(
            Path(given.source), Path(given.out),
            Options(given.format, given.short, given.long, given.quality, given.raw),
            seed=seed,
            shard_images=None if given.shard_images is None else positive("shard-images", given.shard_images),
            shard_bytes=parse_size(given.shard_size),
            workers=None if given.workers is None else positive("workers", given.workers),
            ray=given.ray, max_bad_fraction=given.max_bad_fraction,
        )  # fmt: skip
    except KeyboardInterrupt as stopped:
        say("stopped; the same command goes on from here")
        return EXIT_SIGNAL + (stopped.args[0] if stopped.args else signal.SIGINT)
    except UserError as error:
        print_error(error)
        return EXIT_MISTAKE
    except OSError as error:
        print_error(f"{error.strerror or error} ({error.filename or given.out}); mend it, the same command goes on")
        return EXIT_MISTAKE
    out = Path(given.out)
    file = out.with_name(f"{out.stem}.report.json") if out.suffix in (".beton", ".npz") else out / "report.json"
    show(report, str(file))
    return 0


class Stopped(KeyboardInterrupt):
    """By the signal of this number. Not KeyboardInterrupt itself: where that passes through exec() of a text, as in an
    import of numba, Python ends by SIGINT and not with our exit code, although we catch it."""


def stop(number: int, frame: Any) -> None:
    """On SIGINT and SIGTERM: nobody waits for parts under way, they would be begun anew anyway."""
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.SIG_IGN)  # a second one would disturb the tidying up
    for child in multiprocessing.active_children():
        child.terminate()
    raise Stopped(number)


def positive(name: str, text: Any, least: int = 1) -> int:
    if not str(text).isdigit() or int(text) < least:
        raise DatasetError(f"--{name}={text}: give a whole number from {least} on")
    return int(text)


def parse_size(text: str) -> int:
    """'256MiB', '1GiB', '500MB' or a number of bytes."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    number = text.rstrip("KMGiB")
    if not number.isdigit() or int(number) < 1 or text[len(number) :] not in units:
        raise DatasetError(f"--shard-size={text}: give a number with MiB, GiB, MB or GB, e.g. 256MiB")
    return int(number) * units[text[len(number) :]]


if __name__ == "__main__":
    sys.exit(main())
