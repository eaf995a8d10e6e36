"""metrics.csv: a line for each figure, as step, name, value. Spreadsheets and pandas' pivot make columns of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.files import replacing
from training.appended import Appended

COLUMNS = ("step", "name", "value")


class CsvFile:
    """Lines are added at once; a full disk costs them no run (`Appended`). Pictures are left out."""

    def __init__(self, path: Path, done_steps: int, say: Callable[[str], None]) -> None:
        """Continue after `done_steps`: later lines, which an interrupted run wrote, are dropped. Raises OSError."""
        kept: list[Sequence[str]] = [COLUMNS]
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS) and row[0].isdecimal()]
            kept += [row for row in rows if int(row[0]) <= done_steps]
        with replacing(path) as new:
            new.write(_text(kept))
        self._file = Appended(path, say)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(_text([(str(step), name, repr(value)) for name, value in values.items()]))

    def picture(self, step: int, name: str, png: bytes) -> None:
        """Nothing: a table has no pictures."""

    def close(self) -> None:
        self._file.close()


def _text(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
