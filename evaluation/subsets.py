"""Selects parts of a dataset: by a file list, or a share of every class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.dataset.table import UTF8, DatasetError, SampleTable
from pipeline.draw import philox


def take(table: SampleTable, rows: np.ndarray) -> SampleTable:
    """A table with only these rows, in this order."""
    where = {int(row): index for index, row in enumerate(rows)}
    return replace(
        table,
        **{name: getattr(table, name)[rows] for name in ("container", "offset", "length", "width", "height")},
        label=table.label[rows],
        state=table.state[rows],
        quarantine={where[row]: why for row, why in table.quarantine.items() if row in where},
        fingerprint="",
    )


def listed_rows(table: SampleTable, file: Path, setting: str) -> np.ndarray:
    """The usable rows that a file names, one per line, in the file's order.

    A name is a path below the root or a bare file name, with or without extension; in shards it is the member's name.
    Text after a name and a blank, such as a class, is ignored; a name may have blanks too. setting: the option's name,
    for messages. Raises DatasetError if a name is unknown or fits several images.
    """
    lines = [line.strip() for line in file.read_text("utf-8-sig", UTF8[1]).splitlines() if line.strip()]
    if not lines:
        raise DatasetError(f"{setting}={file}: no names in it; give a name of an image on each line")
    known = _known([table.name(row) for row in range(len(table))])
    usable = set(table.usable().tolist())
    rows: list[int] = []
    for line in lines:
        name = _name_in(line, known)
        row = known.get(name)
        if row is None:
            raise DatasetError(f"{setting}={file}: {name} is not one of the {len(table)} images")
        if row < 0:
            raise DatasetError(f"{setting}={file}: {name} fits several images; give its folder too")
        if row in usable:
            rows.append(row)
    if len(set(rows)) < len(rows):
        raise DatasetError(f"{setting}={file}: it names an image twice")
    return np.array(rows, np.int64)


def _name_in(line: str, known: Mapping[str, int]) -> str:
    """The longest known name at the start of a line, up to a blank; else its first word."""
    ends = [match.start() for match in re.finditer(r"\s+|$", line)]
    names = [line[:end].removeprefix("./") for end in ends]
    return next((name for name in reversed(names) if name in known), names[0])


def _known(names: Sequence[str]) -> dict[str, int]:
    """Every name of a row -> the row, -1 if the name fits several."""
    known: dict[str, int] = {}
    for row, name in enumerate(names):
        member = name.rpartition(":")[2]
        ways = {name, member, member.rpartition("/")[2]}
        ways |= {way.rpartition(".")[0] for way in ways if "." in way}
        for way in ways:
            known[way] = -1 if known.get(way, row) != row else row
    return known


def share_of_each_class(label: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of about `share` of the rows of each class, at least one, ascending; a seed gives the same everywhere.

    label: (N,) class numbers. The rows of a smaller share are a subset of a larger share's.
    """
    chance = philox((np.arange(len(label), dtype=np.uint64), 0, 0, 7), key=(seed, 0))[:, 0]
    kept = []
    for number in np.unique(label):
        rows = np.flatnonzero(label == number)
        order = rows[np.argsort(chance[rows], kind="stable")]
        kept.append(order[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(kept))


def of_each_class(label: np.ndarray, count: int, seed: int, draw: int) -> np.ndarray:
    """Indices of `count` rows of each class (all of a smaller class), ascending; the same everywhere for a seed and the
    number of the draw. The rows of a smaller count are a subset of a larger count's.

    label: (N,) class numbers; rows below 0 are in no class.
    """
    chance = philox((np.arange(len(label), dtype=np.uint64), draw, 0, 8), key=(seed, 0))[:, 0]
    kept = []
    for number in np.unique(label[label >= 0]):
        rows = np.flatnonzero(label == number)
        kept.append(rows[np.argsort(chance[rows], kind="stable")][:count])
    return np.sort(np.concatenate(kept))
