"""Folders that faults begin with, made once and copied to the one place of all faults."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from perf.faults.place import STOPPED_AT, Place, Unexpected
from perf.faults.programs import CONVERT, KNN


class Snapshots:
    """Folders that a fault may begin with, each made once in `folder` and copied to the one place of all faults.

    images: nothing has run. stopped: a run of `ranks` processes was killed after step STOPPED_AT. done: it has ended.
    scored: and was evaluated. packed: the images as a .beton and as shards.
    converting: a conversion was killed before its third part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "place"
        self._results: dict[tuple[str, int, str], Any] = {}

    def fresh(self, name: str, ranks: int) -> Place:
        """The place with the contents of a snapshot."""
        kept = self.folder / (name if name == "images" else f"{name}-{ranks}")
        if not kept.exists():
            getattr(self, f"_{name}")(ranks)
            shutil.copytree(self.place, kept, symlinks=True)
        return self._copied(kept, ranks)

    def _copied(self, kept: Path, ranks: int) -> Place:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(kept, self.place, symlinks=True)
        other = "done" if kept.name.startswith("done") else "stopped"
        return Place(self.place, partial(self._other, other, ranks), ranks)

    def _other(self, name: str, ranks: int) -> Path:
        """A place in which a run with another seed was stopped or is done, as in the snapshot `name`."""
        kept, aside = self.folder / f"other-{name}-{ranks}", self.folder / "aside"
        if not kept.exists():
            os.rename(self.place, aside)
            getattr(self, f"_{name}")(ranks, "run.seed=6")
            os.rename(self.place, kept)
            os.rename(aside, self.place)
        return kept

    def _end(self, place: Place, arguments: Sequence[str]) -> None:
        ended = place.start(arguments).end()
        if ended.code != 0:
            raise Unexpected(f"an undisturbed program ends with {ended.code}: {ended.output[-600:]}")

    def _images(self, ranks: int) -> None:
        from perf.kill_check import make_recipe

        shutil.rmtree(self.place, ignore_errors=True)
        make_recipe(self.place)
        _write_parquet(self.place)

    def _done(self, ranks: int, *settings: str) -> None:
        place = self.fresh("images", ranks)
        self._end(place, place.train(*settings))

    def _stopped(self, ranks: int, *settings: str) -> None:
        place = self.fresh("images", ranks)
        place.stop_at(place.train(*settings), "model.objective:Objective.loss", STOPPED_AT + 1).kill()

    def _scored(self, ranks: int) -> None:
        place = self.fresh("done", ranks)
        self._end(place, KNN.arguments(place))

    def _packed(self, ranks: int) -> None:
        place = self.fresh("images", ranks)
        (self.place / "packed").mkdir()
        for out, format in (("x.beton", "beton"), ("shards", "wds")):
            words = [str(self.place / "images"), str(self.place / "packed" / out), "--format", format]
            self._end(place, ["-m", "pipeline.convert", *words, "--workers", "1", "--shard-images", "30"])

    def _converting(self, ranks: int) -> None:
        place = self.fresh("images", ranks)
        place.stop_at(CONVERT.arguments(place), "pipeline.convert:make_part", 3).kill()

    def undisturbed(self, name: str, ranks: int, program: str, arguments: Any, result: Any) -> Any:
        """`result(place)` after the program `arguments(place)` has run from the snapshot without a fault."""
        key = (name, ranks, program)
        if key not in self._results:
            place = self.fresh(name, ranks)
            self._end(place, arguments(place))
            self._results[key] = result(place)
        return self._results[key]


def _write_parquet(folder: Path) -> None:
    """The images and labels as a Parquet file, for conversion."""
    import pyarrow
    from pyarrow import parquet

    files = sorted((folder / "images").rglob("*.png"))
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [int(file.parent.name.removeprefix("class")) for file in files]
    parquet.write_table(pyarrow.table({"image": images, "label": labels}), folder / "images.parquet")
