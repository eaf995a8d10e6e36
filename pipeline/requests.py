"""Requests for a backend: reads rows, draws their crops and replaces rows that cannot be read.

A bad image does not end a run: another row takes its place, which is a function of the bad row alone, so the order
stays the same on every rank and after every restart. Images that the scan did not decode are checked here, when they
are first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.batch import DrawRows, Request
from pipeline.dataset.headers import is_cut
from pipeline.dataset.images import MAX_PIXELS
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.table import HEADERS, DatasetError, SampleTable, row_dtype

FEW = 64  # images that may be undecodable, whatever their share is


class Feed:
    """Makes requests of the rows of `table`; `bad` holds each row that was replaced, and the reason."""

    def __init__(self, table: SampleTable, reader: Reader, max_bad_fraction: float = 0.01):
        self.table = table
        self.reader = reader
        self.usable = table.usable().astype(row_dtype(table))
        self.max_bad = max_bad_fraction * len(self.usable)
        self.bad: dict[int, str] = {}
        self.quarantined: set[int] = set()  # of `bad`, those that a scan that decodes would have left out
        self.asked = 0  # images that were asked for
        self.converted: set[int] = set()  # rows that only Pillow decodes: passed to the backend as pixels

    def request(self, epoch: int, samples: int, rows: np.ndarray, draw_rows: DrawRows) -> Request:
        """Read `rows` (B,) and draw their crops. Raises DatasetError when too many rows are bad."""
        self.asked += len(rows)
        used = self._good(rows)
        while True:
            items = self.reader.try_read(used)
            errors = [item for item in items if isinstance(item, ReadError)] or self._cut(used, items)
            if not errors:
                break
            for error in errors:
                self.mark_bad(error)
            used = self._good(used)
        encoded: list[np.ndarray] = items  # type: ignore[assignment]
        for index in np.flatnonzero(np.isin(used, list(self.converted))):
            encoded[index] = self.reader.ppm(int(used[index]))
        height, width = self.table.height[used], self.table.width[used]
        drawn = draw_rows(used, height, width)
        return Request(epoch, samples, rows, height, width, drawn, encoded, draw_rows, self.table.pixels)

    def repair(self, request: Request, decodes: Callable[[np.ndarray, int], bool]) -> Request:
        """The request without the images on which a backend failed: Pillow decodes them, or other rows replace them.

        decodes: whether the backend can decode these encoded bytes, of at most so many pixels. Raises DatasetError when
        too many rows are bad.
        """
        for row, encoded in zip(request.draw.rows.tolist(), request.encoded, strict=True):
            if request.pixels.native:
                try:
                    self.reader.native(row)
                except ReadError as error:
                    self.mark_bad(error)
            elif not decodes(encoded, max(MAX_PIXELS, self.table.pixels_of(row))):
                try:
                    self.reader.ppm(row)
                    self.converted.add(row)
                except ReadError as error:
                    self.mark_bad(error)
        return self.request(request.epoch, request.samples, request.rows, request.draw_rows)

    def mark_bad(self, error: ReadError) -> None:
        """Replace the row from now on. Raises DatasetError when too many rows are bad.

        If the scan read only headers, an image that cannot be decoded is quarantined now and not then. As then, any
        number of them is allowed, as long as other images are left.
        """
        self.bad[error.row] = error.reason
        name = f"{self.table.name(error.row)} ({error.reason})"
        if error.undecodable and self.table.check == HEADERS:
            self.quarantined.add(error.row)
            if len(self.quarantined) > FEW + self.asked / 2:
                problem = f"{len(self.quarantined)} of {self.asked} images could not be decoded, the last was {name}"
                raise DatasetError(f"{problem}; find them with data.check=decode")
        elif (bad := len(self.bad) - len(self.quarantined)) > self.max_bad:
            problem = f"{bad} of {len(self.usable)} images could not be read, the last was {name}"
            raise DatasetError(f"{problem}; repair the data or raise data.max_bad_fraction")

    def substitute(self, row: int) -> int:
        """The row that replaces a bad one: the next good row on a fixed walk, whose step is coprime to most n."""
        position = int(np.searchsorted(self.usable, row))
        for step in range(1, len(self.usable) + 1):
            candidate = int(self.usable[(position + 2_654_435_761 * step) % len(self.usable)])
            if candidate not in self.bad:
                return candidate
        raise DatasetError("no readable image is left")

    def _good(self, rows: np.ndarray) -> np.ndarray:
        """The rows, (B,) int64, with substitutes for the bad ones."""
        return np.array([self.substitute(row) if row in self.bad else row for row in rows.tolist()], dtype=np.int64)

    def _cut(self, rows: np.ndarray, items: Sequence[np.ndarray | ReadError]) -> list[ReadError]:
        """Errors of JPEGs without an end, which decoders may fill with gray; empty if the scan has decoded all."""
        errors = []
        for row, item in zip(rows.tolist() if self.table.check == HEADERS else (), items, strict=False):
            if not isinstance(item, ReadError) and is_cut(item):
                try:
                    self.reader.ppm(row)
                except ReadError as error:
                    errors.append(error)
        return errors
