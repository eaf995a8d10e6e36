"""The value of checkpoint.every: after how many epochs, steps or minutes."""

from __future__ import annotations

import re

from config.errors import ConfigError

EXAMPLES = "'1 epoch', '500 steps', '10 minutes', or never"
PATTERN = re.compile(r"0*([1-9]\d*) *(epoch|step|minute)s?")


def is_every(text: str) -> bool:
    """Whether `parse_every` accepts `text`."""
    return text == "never" or PATTERN.fullmatch(text) is not None


def parse_every(text: str) -> tuple[int, str]:
    """'10 minutes' -> (10, "minute"); 'never' -> (0, "epoch"). Raises ConfigError."""
    match = PATTERN.fullmatch(text)
    if match:
        return int(match[1]), match[2]
    if text == "never":
        return 0, "epoch"
    raise ConfigError(f"checkpoint.every={text}: expected such as {EXAMPLES}")
