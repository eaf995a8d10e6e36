"""The sample table: one row per image, whatever container holds the bytes.

Everything that follows (order, draw, reader) names an image by its row. A table is written once, by a scan or
by `pack`, and never changes; a bad image keeps its row, so that an order computed from the table stays valid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from common.cli import UserError
from common.files import replacing, sha256, write_atomically

VERSION = 1
UTF8 = ("utf-8", "surrogateescape")  # Linux file names need not be UTF-8: every byte must come back
COLUMNS = {
    "container": np.int32, "offset": np.int64, "length": np.int64,
    "width": np.int32, "height": np.int32, "label": np.int32, "state": np.uint8,
}  # fmt: skip


class DatasetError(UserError):
    """The data are not what the setting says: one line that names setting, value and mend."""


class State(IntEnum):
    """How a row's bytes become pixels."""

    OK = 0  # every decoder reads them natively
    PIL = 1  # odd, but readable: they go through `pipeline.dataset.images.decode`
    QUARANTINED = 2  # nobody can read them; `SampleTable.quarantine` has the reason
    RAW = 3  # they are the pixels: height x width x 3, RGB, 8 bits (in a .beton)


class Names(Sequence[str]):
    """Immutable strings in two arrays, so that 14 million file names load without 14 million objects."""

    def __init__(self, blob: bytes) -> None:
        """`blob`: the strings in UTF-8, each ended by a zero byte."""
        if blob and blob[-1]:
            raise ValueError("the last string has no end")
        self.blob = blob
        self._ends = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)

    @classmethod
    def of(cls, strings: Iterable[str]) -> Names:
        if isinstance(strings, cls):
            return strings
        return cls(b"".join(text.encode(*UTF8) + b"\0" for text in strings))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        row = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= row < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        start = int(self._ends[row - 1]) + 1 if row else 0
        return self.blob[start : int(self._ends[row])].decode(*UTF8)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self.blob == other.blob
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.blob)


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Columns over N rows.

    root: folder to which `containers` (file names, any sequence of str) are relative.
    container: (N,) int32 index into `containers`; offset, length: (N,) int64 bytes of the image in it.
    width, height: (N,) int32 pixels as displayed (EXIF turn applied), 0 if quarantined.
    label: (N,) int32, -1 without; classes: the names of labels 0.. (empty where unknown).
    state: (N,) uint8 of State; quarantine: row -> reason, for exactly the rows in state QUARANTINED.
    fingerprint: of the listing that was scanned, '' if none was.
    """

    root: Path
    containers: Sequence[str]
    container: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    label: NDArray[np.int32]
    state: NDArray[np.uint8]
    classes: tuple[str, ...] = ()
    quarantine: dict[int, str] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "containers", Names.of(self.containers))
        for name, dtype in COLUMNS.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype))
        problem = _problem(self)
        if problem:
            raise ValueError(f"bad sample table: {problem}")

    def __len__(self) -> int:
        return len(self.container)

    def usable(self) -> NDArray[np.int64]:
        """Rows that are not quarantined, ascending, (M,) int64."""
        return np.flatnonzero(self.state != State.QUARANTINED)

    def digest(self) -> str:
        """SHA-256 of what training sees of the rows: bytes, size in pixels, label and state of each, in order. The same
        for a dataset that was copied, moved or touched."""
        found = hashlib.sha256()
        for column in (self.length, self.width, self.height, self.label, self.state):
            found.update(column.tobytes())
        return found.hexdigest()

    @property
    def loose(self) -> bool:
        """Whether every image is a file of its own (a folder), not a range of a shard."""
        return not self.offset.any()

    def name(self, row: int) -> str:
        """What to call a row in a message: its file, or `shard.tar:member`."""
        file = str(self.containers[self.container[row]])
        offset = int(self.offset[row])
        return file if not offset else f"{file}:{_tar_member(self.root / file, offset) or f'byte {offset}'}"

    def save(self, path: Path, digests: Mapping[str, str] | None = None) -> None:
        """Write `path` (.npz) and a readable `<stem>.json` beside it, each at once or not at all.

        `digests`: SHA-256 per shard, where the caller has them; else the shards are read again.
        """
        path = Path(path)
        inside = path.parent.resolve() == self.root.resolve()
        rows = np.fromiter(self.quarantine, np.int64, len(self.quarantine))
        texts = {
            "root": "." if inside else str(self.root.resolve()),  # '.': a packed folder can be moved
            "fingerprint": self.fingerprint,
        }
        blobs = {
            "containers": Names.of(self.containers).blob,
            "classes": Names.of(self.classes).blob,
            "reasons": Names.of(self.quarantine.values()).blob,
            "texts": json.dumps(texts).encode(),
        }
        arrays: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS}
        arrays |= {name: np.frombuffer(blob, np.uint8) for name, blob in blobs.items()}
        # The manifest goes first: who sees the table sees its manifest too.
        write_atomically(path.with_suffix(".json"), json.dumps(self._manifest(digests), indent=1) + "\n")
        with replacing(path) as file:
            np.savez(file, version=np.int64(VERSION), quarantined=rows, **arrays)

    def _manifest(self, digests: Mapping[str, str] | None) -> dict[str, Any]:
        shards = [] if self.loose else list(self.containers)
        if shards and digests is None:
            with ThreadPoolExecutor(8) as pool:  # hashlib lets go of the GIL
                sums = pool.map(lambda name: sha256(self.root / name), shards)
                digests = dict(zip(shards, sums, strict=True))
        return {
            "version": VERSION,
            "rows": len(self),
            "usable": len(self) - len(self.quarantine),
            "through_pil": int((self.state == State.PIL).sum()),
            "classes": list(self.classes),
            "containers": [
                {"name": name, "bytes": (self.root / name).stat().st_size, "sha256": (digests or {})[name]}
                for name in shards
            ],
            "quarantined": [
                {"row": row, "name": self.name(row), "reason": why} for row, why in self.quarantine.items()
            ],
        }

    @classmethod
    def load(cls, path: Path) -> SampleTable:
        """Read what `save` wrote. Raises DatasetError if the file is missing, damaged or of another
        version."""
        path = Path(path)
        mend = "delete it, and the table is built anew"
        try:
            with np.load(path, allow_pickle=False) as stored:
                if "version" not in stored:
                    raise DatasetError(f"{path}: not a sample table; {mend}")
                if int(stored["version"]) != VERSION:
                    told = f"sample table of version {int(stored['version'])}, this program reads {VERSION}"
                    raise DatasetError(f"{path}: {told}; {mend}")
                texts = json.loads(stored["texts"].tobytes())
                reasons = Names(stored["reasons"].tobytes())
                columns = {name: stored[name] for name in COLUMNS}
                if any(column.dtype != COLUMNS[name] or column.ndim != 1 for name, column in columns.items()):
                    raise ValueError("a column has another dtype or shape")
                return cls(
                    root=(path.parent / texts["root"]).resolve(),
                    containers=Names(stored["containers"].tobytes()),
                    classes=tuple(Names(stored["classes"].tobytes())),
                    quarantine=dict(zip(stored["quarantined"].tolist(), reasons, strict=True)),
                    fingerprint=texts["fingerprint"],
                    **columns,
                )
        except DatasetError:
            raise
        except FileNotFoundError:
            raise DatasetError(f"{path}: no such file") from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile) as error:
            raise DatasetError(f"{path}: damaged sample table ({_one_line(error)}); {mend}") from None


def _problem(table: SampleTable) -> str:
    """What contradicts itself in a table, '' if nothing does."""
    rows = len(table.container)
    if any(len(getattr(table, name)) != rows for name in COLUMNS):
        return "columns of different lengths"
    if not rows:
        return ""
    if table.container.min() < 0 or table.container.max() >= len(table.containers):
        return "a row points to a container that is not listed"
    if min(column.min() for column in (table.offset, table.length, table.width, table.height)) < 0:
        return "a negative offset, length or size"
    if table.label.min() < -1 or (table.classes and table.label.max() >= len(table.classes)):
        return "a label without a class"
    if table.state.max() > max(State):
        return "an unknown state"
    raw = table.state == State.RAW
    if (table.length[raw] != 3 * table.width[raw].astype(np.int64) * table.height[raw]).any():
        return "raw pixels of another length than 3 x width x height"
    if sorted(table.quarantine) != np.flatnonzero(table.state == State.QUARANTINED).tolist():
        return "the quarantine list and the states disagree"
    return ""


def _tar_member(path: Path, offset: int) -> str:
    """The name in the tar header just before `offset`, '' if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(offset - 512)
            header = file.read(512)
    except OSError:
        return ""
    if header[257:262] != b"ustar":
        return ""
    name, prefix = (header[a:b].split(b"\0")[0] for a, b in ((0, 100), (345, 500)))
    return (prefix + b"/" + name if prefix and header[263:265] == b"00" else name).decode(*UTF8)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
