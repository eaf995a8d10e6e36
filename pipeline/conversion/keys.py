"""Keys: the names of images in a converted dataset, made from their names in the source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from pipeline.dataset.table import Names

KEY_BYTES = 90  # a tar's name field holds 100, with the suffix


def unique_keys(names: Iterable[str]) -> Names:
    """The WebDataset key of each name (without suffix), all from one `key_maker`."""
    make = key_maker()
    return Names.of(make(name) for name in names)


def key_maker() -> Callable[[str], str]:
    """A function from names to valid, distinct keys: printable, without dots or blanks in the last part, and short
    enough for a tar. A key that equals an earlier one, ignoring case, gets '-2', '-3', ... appended."""
    seen: set[str] = set()
    count: dict[str, int] = {}

    def make(name: str) -> str:
        key = _valid(name)
        folded = key.casefold()
        tried = folded
        while tried in seen:
            count[folded] = count.get(folded, 1) + 1
            tried = f"{folded}-{count[folded]}"
        seen.add(tried)
        return key if tried == folded else f"{key}-{count[folded]}"

    return make


def _valid(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    key = folder.replace(" ", "_") + slash + (last.replace(".", "_").replace(" ", "_") or "_")
    if not key.isprintable():
        key = "".join(letter if letter.isprintable() else "_" for letter in key)
    if len(key.encode()) > KEY_BYTES:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        key = key.encode()[: KEY_BYTES - 20].decode(errors="ignore").replace(".", "_") + "-" + digest
    return key
