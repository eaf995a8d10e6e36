"""SLURM's notation for a list of numbers in the environment."""

from __future__ import annotations

import re

from common.cli import UserError


def expand_counts(text: str) -> list[int]:
    """Expands SLURM's short form of one number per node: `4(x2),3` -> 4, 4, 3. Raises UserError if malformed."""
    counts: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", piece)
        if match is None:
            raise UserError(f"{text!r} is not a SLURM list of numbers")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
