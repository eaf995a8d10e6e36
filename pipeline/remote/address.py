"""Addresses of objects: `s3://bucket/folder`, `https://host/list.txt`, and how they are shown."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.dataset.table import DatasetError

# One slash where two were: `Path` has made `s3:/bucket` of it.
SCHEME = re.compile(r"(s3|gs|hf|https?):/{1,2}(?=[^/])")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class RemoteObject(NamedTuple):
    """An object as it was listed.

    name: its path in the mirror, relative; address: of its bytes. size: bytes, -1 if the list does not say it.
    tag: its ETag or time of change, '' without; other bytes have another tag.
    """

    name: str
    address: str
    size: int
    tag: str


def is_remote(path: object) -> bool:
    """Whether a path is an address of a bucket or a web server."""
    return SCHEME.match(str(path)) is not None


def with_slashes(path: object) -> str:
    """A remote path as an address with its two slashes, without those at its end."""
    match = SCHEME.match(str(path))
    assert match is not None
    return f"{match[1]}://{str(path)[match.end() :]}".rstrip("/")


def parsed(path: object) -> tuple[str, str]:
    """Scheme and the address with its two slashes. Raises DatasetError for an address with a password or a query,
    which would be written to logs and checkpoints."""
    address = with_slashes(path)
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise DatasetError("a name or password in the address; put it into ~/.netrc, or where the library looks for it")
    if parts.query and parts.scheme.startswith("http"):
        raise DatasetError("a query in the address; put such addresses into a list, and give https://.../list.txt")
    return parts.scheme, address


def shown(address: str) -> str:
    """The address for messages: without a query, which may be a signature, and without a password."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def expanded(pattern: str) -> list[str]:
    """The addresses of `https://host/train-{000..146}.tar`, as WebDataset writes shards; without braces, the one."""
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise DatasetError(f"{match[0]} counts down; write the smaller number first")
    numbers = (f"{number:0{len(match[1])}d}" for number in range(first, last + 1))
    return [each for number in numbers for each in expanded(pattern[: match.start()] + number + pattern[match.end() :])]


def mirror_name(path: str) -> str:
    """A path in the mirror for the part of an address below its folder; '' for a hidden one or a folder, which are
    skipped, as in a folder on a disk. Raises DatasetError for a path that leads out of the folder."""
    parts = unquote(path).split("/")
    if ".." in parts or "\0" in path:
        raise DatasetError(f"{path}: an object whose name leads out of its folder; rename it")
    return "" if not parts[-1] or any(part.startswith(".") or not part for part in parts) else "/".join(parts)
