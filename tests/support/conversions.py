"""Conversions for tests: in this process or as a command, and digests of their files."""

import sys

from common.files import sha256
from pipeline.conversion.rewrite import Options
from pipeline.convert import convert, packing_order
from support.programs import run_module
from support.small_datasets import ALL, ROOT, write

LABELLED = {f"class{index % 3}/{name}": data for index, (name, data) in enumerate(ALL.items())}


def converted(source, out, kind, *, short=None, long=None, quality=None, raw=False, **settings):
    options = Options(kind, short, long, quality, raw)
    return convert(source, out, options, **{"workers": 1, "progress": False, **settings})


def target(folder, kind):
    folder.mkdir(exist_ok=True)
    return folder / {"beton": "x.beton", "index": "x.npz"}.get(kind, "x")


def digests(folder):
    """SHA-256 of every file below a folder, except for the report, which contains the path of OUT."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "report" not in path.name)
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def command(source, out, *options):
    return [sys.executable, "-m", "pipeline.convert", str(source), str(out), *map(str, options)]


def run(*arguments):
    """Exit code, output and errors of the program, in this process."""
    done = run_module("pipeline.convert", *arguments, folder=ROOT)
    return done.returncode, done.stdout, done.stderr


def write_zoo(folder):
    """Every image of odd_images.py, in three classes."""
    return write(folder / "zoo", LABELLED)


def sources_in_order(report, source_files, seed=31):
    """Names of the written images in the order in which they were packed."""
    names = sorted(source_files, key=lambda name: (name.split("/")[0], name))
    return [names[row] for row in packing_order(len(names), seed) if names[row] not in report.quarantined]
