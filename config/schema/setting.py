"""The declaration of a setting, and the flat list of a section's settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field

from config.schema.ranges import A_PATH, alternatives, kind_words, range_words

MISSING = "???"  # OmegaConf's mark of a value to be given
SPEED = "nothing changes but speed"  # effect of such a change on a resumed run, which then does not mention it


class Section(BaseModel):
    """Settings that belong together. The docstring of a section is its help text."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def setting(
    default: Any, help: str, *, resume: str = "", kept: bool = False, expected: str = "", name: str | None = None
) -> Any:
    """Declare a key of a Section.

    resume: the effect of another value when a run resumes; empty: another value would be another run. kept: with a
    value in `resume` too, `auto` is still the value with which the run has begun.
    expected: words for the range in place of those from the type. name: the key, where it is a Python keyword.
    """
    more: Any = {"resume": resume, "kept": kept, "expected": expected}
    return Field(default, description=help, alias=name, json_schema_extra=more)


@dataclass(frozen=True)
class Setting:
    """A declared key. `annotation` has type and limits; `help` is one line; `resume` as in `setting`."""

    key: str
    annotation: Any
    default: Any
    help: str
    resume: str = ""
    kept: bool = False
    expected: str = ""

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default == MISSING

    @property
    def free(self) -> bool:
        """Whether it is a mapping of any keys."""
        return isinstance(self.default, dict)

    @property
    def auto(self) -> bool:
        """Whether training/auto.py may choose it from the data, the batch and the machine."""
        return any("auto" in get_args(kind) for kind, _ in alternatives(self.annotation))

    @property
    def is_text(self) -> bool:
        """Whether it is a text of any characters, or null."""
        kinds = {kind for kind, _ in alternatives(self.annotation) if get_origin(kind) is not list}
        return str in kinds and kinds <= {str, NoneType}

    @property
    def takes_list(self) -> bool:
        """Whether it may be a list."""
        return any(get_origin(kind) is list for kind, _ in alternatives(self.annotation))

    @property
    def nullable(self) -> bool:
        """Whether it takes null."""
        return any(kind is NoneType for kind, _ in alternatives(self.annotation))

    @property
    def is_path(self) -> bool:
        """Whether it names a file or folder."""
        return any(A_PATH in metadata for _, metadata in alternatives(self.annotation))

    @property
    def keeps_auto(self) -> bool:
        """Whether `auto` stands, on resume, for the value with which the run has begun."""
        return self.auto and (self.kept or not self.resume)

    @property
    def kind(self) -> str:
        """The types that it takes, in words."""
        return self.expected or kind_words(self.annotation)

    @property
    def range(self) -> str:
        """Types and limits, in words."""
        return self.expected or range_words(self.annotation)


@dataclass(frozen=True)
class Heading:
    """A section, "" for the outermost."""

    key: str
    help: str


def declared(section: type[Section], prefix: str = "") -> Iterator[Heading | Setting]:
    """A section and all below it, in the order of declaration."""
    yield Heading(prefix, " ".join((section.__doc__ or "").split()))
    annotations = get_type_hints(section, include_extras=True)
    for attribute, field in section.model_fields.items():
        key, annotation = f"{prefix}.{field.alias or attribute}".lstrip("."), annotations[attribute]
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from declared(annotation, key)
        else:
            extra: Any = field.json_schema_extra
            yield Setting(key, annotation, field.default, field.description or "", **(extra or {}))
