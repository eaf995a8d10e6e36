"""How SLURM writes a list of numbers in the environment."""

from __future__ import annotations

import re

from common.cli import UserError


def expand_counts(text: str) -> list[int]:
    """SLURM's short form of a number a node: `4(x2),3` -> 4, 4, 3. Raises UserError if the text is malformed."""
    counts: list[int] = []
    for piece in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", piece)
        if found is None:
            raise UserError(f"{text!r} is no list of numbers as SLURM writes it")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts
