"""Requests for a backend: reads rows, draws their crops and replaces rows that cannot be read.

A bad image does not end a run: another row takes its place, which is a function of the bad row alone, so the order
stays the same on every rank and after every restart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.batch import DrawRows, Request
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.table import DatasetError, SampleTable


class Feed:
    """Makes requests of the rows of `table`; `bad` holds each row that was replaced, and the reason."""

    def __init__(self, table: SampleTable, reader: Reader, max_bad_fraction: float = 0.01):
        self.table = table
        self.reader = reader
        self.usable = table.usable()
        self.max_bad = max_bad_fraction * len(self.usable)
        self.bad: dict[int, str] = {}
        self.converted: set[int] = set()  # rows that only Pillow decodes: passed to the backend as pixels

    def request(self, epoch: int, samples: int, rows: np.ndarray, draw_rows: DrawRows) -> Request:
        """Read `rows` (B,) and draw their crops. Raises DatasetError when too many rows are bad."""
        used = np.array([self.substitute(row) if row in self.bad else row for row in rows.tolist()], dtype=np.int64)
        while True:
            try:
                encoded = self.reader.read(used)
                break
            except ReadError as error:
                self.mark_bad(error.row, error.reason)
                used = np.array([self.substitute(row) if row == error.row else row for row in used.tolist()])
        for index in np.flatnonzero(np.isin(used, list(self.converted))):
            encoded[index] = self.reader.ppm(int(used[index]))
        height, width = self.table.height[used], self.table.width[used]
        return Request(epoch, samples, rows, height, width, draw_rows(used, height, width), encoded, draw_rows)

    def repair(self, request: Request, decodes: Callable[[np.ndarray], bool]) -> Request:
        """The request without the images on which a backend failed: Pillow decodes them, or other rows replace them.

        decodes: whether the backend can decode these encoded bytes. Raises DatasetError when too many rows are bad.
        """
        for row, encoded in zip(request.draw.rows.tolist(), request.encoded, strict=True):
            if not decodes(encoded):
                try:
                    self.reader.ppm(row)
                    self.converted.add(row)
                except ReadError as error:
                    self.mark_bad(row, error.reason)
        return self.request(request.epoch, request.samples, request.rows, request.draw_rows)

    def mark_bad(self, row: int, reason: str) -> None:
        self.bad[row] = reason
        if len(self.bad) > self.max_bad:
            raise DatasetError(
                f"{len(self.bad)} of {len(self.usable)} images could not be read, the last was {self.table.name(row)} "
                f"({reason}); repair the data or raise data.max_bad_fraction"
            )

    def substitute(self, row: int) -> int:
        """The row that replaces a bad one: the next good row on a fixed walk, whose step is coprime to most n."""
        position = int(np.searchsorted(self.usable, row))
        for step in range(1, len(self.usable) + 1):
            candidate = int(self.usable[(position + 2_654_435_761 * step) % len(self.usable)])
            if candidate not in self.bad:
                return candidate
        raise DatasetError("no readable image is left")
