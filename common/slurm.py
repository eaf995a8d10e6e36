"""SLURM's notation for a list of numbers in the environment."""

from __future__ import annotations

import re

from common.cli import UserError

MOST_NODES = 100_000  # in a list; SLURM's own limit is 65,533


def expand_counts(text: str) -> list[int]:
    """Expands SLURM's short form of one number per node: `4(x2),3` -> 4, 4, 3. Raises UserError if malformed."""
    counts: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", piece)
        if match is None or len(counts) + int(match[2] or 1) > MOST_NODES:
            raise UserError(f"{text[:80]!r} is not a SLURM list of numbers")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
