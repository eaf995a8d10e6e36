"""The programs that are broken, with what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from perf.faults.place import STOPPED_AT, Place, contents, losses


@dataclass(frozen=True)
class Program:
    """A program to break. arguments: of its command line in a place. result: what it leaves, compared after a fault.
    begins: the snapshot that an undisturbed one begins with."""

    name: str
    arguments: Callable[[Place], list[str]]
    result: Callable[[Place], Any]
    begins: str = "images"


def _run_of(place: Place) -> list[str]:
    return place.train()


def _losses_of(place: Place) -> Any:
    return losses(place.run)


TRAIN = Program("train.py", _run_of, _losses_of)


def _convert(source: str, out: str, format: str) -> Any:
    def arguments(place: Place) -> list[str]:
        (place.folder / "out").mkdir(exist_ok=True)
        target = str(place.folder / "out" / out)
        words = ["-m", "pipeline.convert", str(place.folder / source), target, "--format", format]
        return [*words, "--workers", "1", "--shard-images", "20"]

    return arguments


def _converted(place: Place) -> Any:
    """What lies in OUT, without the report, which holds the time."""
    found = contents(place.folder / "out")
    return {name: digest for name, digest in found.items() if "report" not in name}


def _figures(place: Place) -> Any:
    results = json.loads((place.folder / "out" / "knn.json").read_text())["results"]
    return {key: value for key, value in results[0].items() if key != "seconds"}


def _exported(place: Place) -> Any:
    return contents(place.folder / "out" / "weights.pth")


def _knn(place: Place) -> list[str]:
    (place.folder / "out").mkdir(exist_ok=True)
    caches = ["--cache", str(place.folder / "features"), "--tables", str(place.folder / "tables")]
    return ["evaluate.py", "knn", str(place.run), *caches, "--json", str(place.folder / "out" / "knn.json")]


def _export(place: Place) -> list[str]:
    (place.folder / "out").mkdir(exist_ok=True)
    return ["-m", "export", str(place.run), str(place.folder / "out" / "weights.pth"), "--format", "swav"]


def _run_on(path: str) -> Any:
    return lambda place: place.train(f"data.path={place.folder / path}", f"run.directory={place.run}")


def _later_losses(place: Place) -> Any:
    return {step: loss for step, loss in losses(place.run).items() if step >= STOPPED_AT}


TAIL = Program(
    "train.py, from its last checkpoint", TRAIN.arguments, _later_losses
)  # for a run whose earlier lines are damaged
BETON = Program("train.py on a .beton", _run_on("packed/x.beton"), _losses_of, "packed")
TARS = Program("train.py on shards", _run_on("packed/shards"), _losses_of, "packed")
CONVERT = Program("convert to .beton", _convert("images", "x.beton", "beton"), _converted)
SHARDS = Program("convert to shards", _convert("images", "shards", "wds"), _converted)
PARQUET = Program("convert Parquet", _convert("images.parquet", "shards", "wds"), _converted)
KNN = Program("evaluate.py knn", _knn, _figures, "done")
EXPORT = Program("export", _export, _exported, "done")
