"""The values that a setting takes: bounds that pydantic checks, and their words in messages and pages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval, Len, Predicate

Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class Range(Interval):
    """Bounds of a number. `str` uses the texts: "a share from 0 to 1", "4 to 4096 pixels", "at least 2: why"."""

    what: str = ""
    unit: str = ""
    why: str = ""

    def admits(self, value: Any) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        if self.ge is not None and self.le is not None:
            bounds = f"{'from ' if self.what else ''}{self.ge} to {self.le}"
        elif self.gt is not None and self.le is not None:
            bounds = f"above {self.gt}, at most {self.le}"
        elif self.gt is not None:
            bounds = f"more than {self.gt}"
        elif self.ge is None:
            bounds = f"at most {self.le}"
        else:
            bounds = "0 or more" if self.ge == 0 else f"at least {self.ge}"
            bounds += f" and less than {self.lt}" if self.lt is not None else ""
        words = " ".join(word for word in (self.what, bounds, self.unit) if word)
        return f"{words}: {self.why}" if self.why else words


@dataclass(frozen=True, slots=True)
class Holds(Predicate):
    """A condition other than a range; `words` describe it."""

    words: str

    def admits(self, value: Any) -> bool:
        return bool(self.func(value))

    def __str__(self) -> str:
        return self.words


AtLeastOne = Annotated[int, Range(ge=1)]
ZeroOrMore = Annotated[int, Range(ge=0)]
NotNegative = Annotated[float, Range(ge=0)]
Positive = Annotated[float, Range(gt=0)]
Probability = Annotated[float, Range(ge=0, le=1, what="a probability")]
A_PATH = "a path"  # marks a text that names a file or folder; `~` at its start is the home directory
FilePath = Annotated[str, A_PATH]
MOST_CHANNELS = 1024  # of an image
PerChannel = Len(1, MOST_CHANNELS)  # a number for each channel, of color images red, green, blue


def rising(high: float = math.inf, unit: str = "") -> Holds:
    """A pair of numbers above 0, the second not below the first and at most `high`."""
    words = "[low, high] with 0 < low <= high" + (f" <= {high:g}" if high < math.inf else "")
    return Holds(lambda pair: 0 < pair[0] <= pair[1] <= high, words + (f", in {unit}" if unit else ""))


def all_finite(node: Any) -> bool:
    """Whether no number in nested mappings and lists is infinite or NaN."""
    if isinstance(node, dict):
        return all(all_finite(value) for value in node.values())
    if isinstance(node, list):
        return all(all_finite(value) for value in node)
    return not isinstance(node, float) or math.isfinite(node)


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|KB|MB|GB|TB)", re.IGNORECASE)


def bytes_of(size: str) -> int:
    """A size in bytes: 100GB is 10**11. Raises ValueError for a text that is none."""
    match = SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"{size!r} is no size")
    return int(float(match[1]) * UNITS[match[2].upper()])


Size = Annotated[str, Holds(lambda text: SIZE.fullmatch(text) is not None, "a number with B, KB, MB, GB or TB")]


# Keys and values that the backbone and DeepSpeed check themselves.
Free = Annotated[dict[Any, Any], Holds(all_finite, "finite numbers")]


# ---------------------------------------------------------------------- words of an annotation
def kind_words(annotation: Any) -> str:
    """The types of an annotation in words: "auto or a number"."""
    return _joined([name for kind, metadata in alternatives(annotation) for name in _names(kind, metadata)])


def range_words(annotation: Any) -> str:
    """Its types and limits in words: "auto or an integer (at least 2)"."""
    parts = []
    for kind, metadata in alternatives(annotation):
        *first, last = _names(kind, metadata)
        words = ", ".join(str(limit) for limit in limits_of(kind, metadata))
        parts += [*first, f"{last} ({words})" if words else last]
    return _joined(parts)


def alternatives(annotation: Any) -> list[tuple[Any, Sequence[Any]]]:
    """The types of a union, each with its metadata; one type for other annotations."""
    if get_origin(annotation) in (Union, UnionType):
        return [pair for choice in get_args(annotation) for pair in alternatives(choice)]
    if get_origin(annotation) is Annotated:
        return [(annotation.__origin__, annotation.__metadata__)]
    return [(annotation, ())]


def own_limits(metadata: Sequence[Any]) -> list[Range | Holds]:
    """The limits among the metadata of a type."""
    return [limit for limit in metadata if isinstance(limit, Range | Holds)]


def limits_of(kind: Any, metadata: Sequence[Any]) -> list[Range | Holds]:
    """The limits of a type, those of a list's items included."""
    limits = own_limits(metadata)
    if get_origin(kind) is list:
        limits += [limit for item in alternatives(get_args(kind)[0]) for limit in limits_of(*item)]
    return limits


ITEMS = {int: "integers", float: "numbers", str: "texts"}


def _names(kind: Any, metadata: Sequence[Any]) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    if get_origin(kind) is dict:
        return ["a mapping"]
    if get_origin(kind) is list:
        (item, _), lengths = alternatives(get_args(kind)[0])[0], [m for m in metadata if isinstance(m, Len)]
        exactly = f"{lengths[0].max_length} " if lengths and lengths[0].max_length == lengths[0].min_length else ""
        return [f"a list of {exactly}{ITEMS.get(item, 'mappings')}"]
    simple = {bool: ["true", "false"], NoneType: ["null"], str: ["a text"], int: ["an integer"], float: ["a number"]}
    return simple[kind]


def _joined(parts: list[str]) -> str:
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
