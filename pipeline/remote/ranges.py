"""Byte ranges that lie next to each other, in one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LARGEST = 8 << 20  # bytes of a request
SPARE = 0.03  # bytes between images that may be fetched with them, as a share of the images' own


class Span(NamedTuple):
    """Bytes `start` to before `end` of a container, with these rows."""

    container: int
    start: int
    end: int
    rows: tuple[int, ...]


def spans(rows: Sequence[int], containers: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> list[Span]:
    """The requests for rows, each with its container, first byte and length. Neighbors are joined as long as a request
    has at most LARGEST bytes, and at most SPARE of what is needed lies between them."""
    made: list[Span] = []
    needed = 0
    for container, start, length, row in sorted(zip(containers, starts, lengths, rows, strict=True)):
        if made and made[-1].container == container:
            last, end = made[-1], max(made[-1].end, start + length)
            spare = end - last.start - needed - length
            if end - last.start <= LARGEST and spare <= SPARE * (needed + length):
                made[-1] = last._replace(end=end, rows=(*last.rows, row))
                needed += length
                continue
        made.append(Span(container, start, start + length, (row,)))
        needed = length
    return made
