"""Fields of a protobuf message, without reading large values. Source: protobuf.dev, "Encoding"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.dataset.records.listing import Window

FIXED = {1: 8, 5: 4}  # bytes of a value, by wire type
NUMBER, BYTES = 0, 2  # wire types


class Field(NamedTuple):
    """number: of the field; wire: its wire type; start, end: of its bytes; value: of a number."""

    number: int
    wire: int
    start: int
    end: int
    value: int = 0


def fields(window: Window, start: int, end: int) -> Iterator[Field]:
    """The fields of the message from `start` to `end`. Raises ValueError if it is none."""
    at = start
    while at < end:
        head = window.read(at, min(20, end - at))
        tag, used = varint(head, 0)
        number, wire = tag >> 3, tag & 7
        if wire == NUMBER:
            value, used = varint(head, used)
            yield Field(number, wire, at, at + used, value)
            at += used
            continue
        length = FIXED.get(wire, 0)
        if wire == BYTES:
            length, used = varint(head, used)
        elif not length:
            raise ValueError("not such a message")
        if at + used + length > end:
            raise ValueError("not such a message")
        yield Field(number, wire, at + used, at + used + length)
        at += used + length


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and the position after it. Raises ValueError."""
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
    raise ValueError("no number")


def signed(value: int) -> int:
    """A number of 64 bits with its sign."""
    return value - (value >> 63 << 64)
