"""The collections by name, and how each is made ready."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from common.files import locked
from pipeline import fashion_mnist
from pipeline.collections import emoji, openclipart
from pipeline.collections.drawings import complete, tables_of
from pipeline.collections.packages import Unavailable
from pipeline.dataset.table import DatasetError, SampleTable

DRAWINGS: dict[str, Callable[[Path, Path, int, bool], dict[str, SampleTable]]] = {
    "openclipart": openclipart.prepare,
    "emoji": emoji.prepare,
}
NAMES = ("fashion-mnist", *DRAWINGS)


def prepare(name: str, out: Path, workers: int = 1, progress: bool = True) -> dict[str, SampleTable]:
    """Tables of `out`/train and `out`/test; what is missing is fetched and packed first. Raises DatasetError.

    What was fetched stays next to `out` until everything is packed.
    """
    if name not in DRAWINGS:
        return fashion_mnist.prepare(out, progress, workers)
    fetched = out.absolute().with_name(f".{out.name}.fetched")
    fetched.parent.mkdir(parents=True, exist_ok=True)
    with locked(fetched.with_name(f".{out.name}.lock")):
        if complete(out):
            return tables_of(out)
        fetched.mkdir(exist_ok=True)
        try:
            tables = DRAWINGS[name](out, fetched, workers, progress)
        except Unavailable as why:
            raise DatasetError(f"{name} cannot be fetched: {why}") from None
        shutil.rmtree(fetched)
    return tables
