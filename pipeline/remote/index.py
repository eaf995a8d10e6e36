"""What a mirror holds: a line of JSON for each object, appended when its file is complete."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from common.files import replacing_path
from pipeline.dataset.table import DatasetError
from pipeline.remote.address import RemoteObject

VERSION = 1
FILE = "index.jsonl"
ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}


class ImageProbe(NamedTuple):
    """What a scan found out about an image: bytes, pixels, `State`, CRC-32; why it cannot be decoded, '' if it can."""

    length: int
    width: int
    height: int
    state: int
    crc: int
    reason: str


class Held(NamedTuple):
    """An object that the mirror holds. whole: whether its file has all bytes, or all but those of images; image: of an
    object that is an image whose bytes are not there."""

    item: RemoteObject
    sha256: str
    whole: bool
    image: ImageProbe | None = None


class Index:
    """The objects of the mirror in `folder`, by name. `add` is safe to call from several threads.

    A kill leaves at most half a line at the end, which does not count. Only the user can read the file: the addresses
    of a list may be signed.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.held, self._lock = folder / FILE, dict[str, Held](), Lock()
        text = self.path.read_text(**ENCODING) if self.path.exists() else ""
        lines = text.split("\n")[:-1]  # without the half line of a kill
        if lines and lines[0] != _HEAD:
            problem = f"{folder} is a cache of another version of swave"
            raise DatasetError(f"{problem}; delete that folder, or set another data.cache")
        for line in lines[1:]:
            name, address, size, tag, digest, whole, *image = json.loads(line)
            self.held[name] = Held(
                RemoteObject(name, address, size, tag), digest, whole, ImageProbe(*image) if image else None
            )
        self._whole_lines = bool(lines) and text.endswith("\n")

    def add(self, held: Held) -> None:
        with self._lock:
            if not self._whole_lines:
                self.write()
            self.held[held.item.name] = held
            with self.path.open("a", **ENCODING) as file:
                file.write(_line(held))

    def keep(self, objects: dict[str, Held]) -> None:
        """Hold these objects and no others."""
        self.held = objects
        self.write()

    def write(self) -> None:
        """Write the file anew."""
        with replacing_path(self.path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(_HEAD + "\n" + "".join(map(_line, self.held.values())), **ENCODING)
        self._whole_lines = True


_HEAD = json.dumps({"swave mirror": VERSION})


def _line(held: Held) -> str:
    item = held.item
    return json.dumps([*item, held.sha256, held.whole, *(held.image or ())]) + "\n"
