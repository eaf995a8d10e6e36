"""What kind of backbone a name means."""

from __future__ import annotations

from common.own_code import FUNCTION

LIBRARIES = ("torchvision", "transformers")


class UnknownBackbone(ValueError):
    """A name that is no backbone; the message, in one line, has the nearest ones."""


def library_of(name: str) -> tuple[str, str]:
    """The library before a colon and the name behind it; ("", name) for our ResNets, timm's models and own code."""
    library, _, inner = name.partition(":")
    return (library, inner) if library in LIBRARIES else ("", name)


def is_own_code(name: str) -> bool:
    """Whether a name is `module:function`, the user's own code."""
    return FUNCTION.fullmatch(name) is not None and name.partition(":")[0] not in (*LIBRARIES, "timm")


def split_own_code(word: str) -> tuple[str, str]:
    """`PATH@module:function` or `PATH@transformers:FOLDER` as path and network; (word, "") without them.

    A path with such an end that exists is rare enough: give it with a slash behind it.
    """
    head, at, tail = word.rpartition("@")
    if at and head and is_own_code(tail):
        return head, tail
    head, at, folder = word.rpartition("@transformers:")
    return (head, f"transformers:{folder}") if at and head else (word, "")
