"""Random changes of bytes: flips, cuts, insertions, repetitions, numbers at the ends of their ranges, other inputs."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 32_767, 65_535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
TEXTS = (b"\0", b"\xff", b"\n", b"../", b"NaN", b"1e999", b"-1", b"9" * 30, "²".encode(), b"[" * 50, b"'", b"%s", b"#")


def mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds after one to four changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        where = chance.randrange(len(data) + 1)
        way = chance.randrange(8)
        if way == 0 and data:
            data[min(where, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif way == 1:
            del data[where:]
        elif way == 2:
            del data[where : where + chance.randrange(1, 64)]
        elif way == 3:
            data[where:where] = data[where : where + chance.randrange(1, 256)]
        elif way == 4:
            data[where:where] = chance.choice(TEXTS)
        elif way == 5:
            size, number = chance.choice((1, 2, 4, 8)), chance.choice(NUMBERS)
            packed = struct.pack(chance.choice("<>") + "q", max(-(2**63), min(number, 2**63 - 1)))
            data[where : where + size] = packed[:size] if chance.random() < 0.5 else packed[-size:]
        elif way == 6:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[where : where + 32] = other[start : start + 32]
        else:
            data[where : where + chance.randrange(1, 16)] = chance.randbytes(chance.randrange(1, 16))
    return bytes(data)
