"""Labels of any kind as class numbers: whole numbers stay, names are numbered in the order of the alphabet."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from pipeline.dataset.table import DatasetError

Label = int | str | None  # a class number, a text (a name, or digits), or none
NUMBER = re.compile(r"(-?\d+)(\.0*)?", re.ASCII)
LONGEST_NAME = 200  # characters; a longer text is no class name
ADVICE = "write whole numbers or names, or leave the labels out with data.label=none"


def label_of(value: Any, where: str, digits: bool = False) -> Label:
    """A label as people write it: 3, 3.0, True, '3', '3.0', 'cat', b'cat'; None, NaN, -1 and '' are no label.

    digits: whether '3' stays a text, since it may be the name of a class. Raises DatasetError, which begins with
    `where`.
    """
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if isinstance(text, str):
        text = text.strip()
        if not is_number(text):
            if len(text) > LONGEST_NAME or not text.isprintable():
                raise DatasetError(f"{where}: {text[:20]!r} is not a class; {ADVICE}")
            return text or None
        if len(text) > 10:
            raise DatasetError(f"{where}: label {text[:20]} is not a class number; {ADVICE}")
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return None
    try:
        number = int(text.partition(".")[0] if isinstance(text, str) else text)
    except (TypeError, ValueError, OverflowError):
        number = -2
    if number < -1 or number >= 2**31 or (not isinstance(text, str) and number != text):
        raise DatasetError(f"{where}: label {str(text)[:20]} is not a class number; {ADVICE}")
    return None if number == -1 else text if digits and isinstance(text, str) else number


def is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None


def class_names(labels: Iterable[Label], where: str = "") -> tuple[str, ...]:
    """The distinct names among labels, sorted; () if all are numbers. Digits count as a name if other texts do not
    consist of digits. Raises DatasetError, which begins with `where`, for names together with numbers."""
    distinct = set(labels) - {None}
    texts = sorted(label for label in distinct if isinstance(label, str))
    if all(map(is_number, texts)):
        return ()
    if len(texts) < len(distinct):
        number = min(label for label in distinct if isinstance(label, int))
        raise DatasetError(f"{where}some labels are names ({texts[-1]!r}), others numbers ({number}); {ADVICE}")
    return tuple(texts)


def numbering(classes: Sequence[str]) -> Callable[[Label], int]:
    """A function from a label to its number, -1 without: a text is its position in `classes`, if there are any."""
    position = {name: index for index, name in enumerate(classes)}

    def number(label: Label) -> int:
        if label is None:
            return -1
        return position[label] if isinstance(label, str) and classes else int(float(label))

    return number


def numbered(labels: Iterable[Label], classes: Sequence[str]) -> Int32[np.ndarray, " n"]:
    """The number of each label; see `numbering`."""
    return np.array(list(map(numbering(classes), labels)), np.int32)
