"""The sample table: one row per image, in whatever container the bytes are.

Order, draw and reader refer to an image by its row. A table is written once, by a scan or by `pack`, and never changes;
a bad image keeps its row, so that an order computed from the table stays valid.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cli import UserError
from common.files import NPZ_DAMAGE, replacing, sha256, write_atomically
from common.progress import in_main_process, progress_bar
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.columns import blocks, read_columns, write_columns
from pipeline.dataset.inside.names import FRAME, file_of, is_inside, numbered

VERSION = 2
READ = (1, 2)  # version 1 has no `left_out`
DECODE, HEADERS, NONE = "decode", "headers", "none"  # `SampleTable.check`
UTF8 = ("utf-8", "surrogateescape")  # Linux file names need not be UTF-8; this keeps every byte
COLUMNS = {
    "container": np.int32, "offset": np.int64, "length": np.int64,
    "width": np.int32, "height": np.int32, "label": np.int32, "state": np.uint8,
}  # fmt: skip


class DatasetError(UserError):
    """The data do not fit the setting: one line with the setting, its value and what to do."""


class State(IntEnum):
    """How a row's bytes become pixels."""

    OK = 0  # every backend decodes them
    PIL = 1  # unusual: `pipeline.dataset.images.decode` decodes them
    QUARANTINED = 2  # not decodable; `SampleTable.quarantine` has the reason
    RAW = 3  # they are pixels: height x width x 3, RGB, 8 bits (in a .beton)
    ARRAY = 4  # `pipeline.dataset.channels.decode` makes the table's own pixel format of them: files, or bare samples


class Names(Sequence[str]):
    """Immutable strings in two arrays, so that 14 million file names do not become 14 million objects."""

    def __init__(self, blob: bytes | memoryview, ends: NDArray[np.int64] | None = None) -> None:
        """`blob`: the strings in UTF-8, each ended by a zero byte; ends: where these are, ascending, if known."""
        if len(blob) and blob[-1]:
            raise ValueError("the last string has no end")
        self.blob = blob
        self.ends = _ends(blob) if ends is None else ends
        if (len(self.ends) and self.ends[-1]) != (len(blob) and len(blob) - 1):
            raise ValueError("the ends do not belong to the strings")

    @classmethod
    def of(cls, strings: Iterable[str]) -> Names:
        if isinstance(strings, cls):
            return strings
        blob = bytearray()
        for text in strings:
            blob += text.encode(*UTF8) + b"\0"
        return cls(memoryview(blob).toreadonly())

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        row = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= row < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        start = int(self.ends[row - 1]) + 1 if row else 0
        return bytes(self.blob[start : int(self.ends[row])]).decode(*UTF8)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self.blob == other.blob
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(bytes(self.blob))

    def __reduce__(self) -> tuple[type[Names], tuple[bytes]]:
        return Names, (bytes(self.blob),)  # of a memory map, another process gets the bytes


def _ends(blob: bytes | memoryview) -> NDArray[np.int64]:
    """Where the zero bytes are."""
    data = np.frombuffer(blob, np.uint8)
    parts = [np.flatnonzero(data[part] == 0) + part.start for part in blocks(len(data))]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class SampleTable:
    """N rows in columns.

    root: folder to which `containers` (file names, any sequence of str) are relative.
    container: (N,) int32 index into `containers`; offset, length: (N,) int64 byte range of the image in it. Of a place
    inside of a file (`x.h5//images/`, see `pipeline.dataset.inside`) the offset is the number of the image there.
    width, height: (N,) int32 pixels as displayed (after EXIF rotation), 0 if quarantined.
    label: (N,) int32, -1 without; classes: the names of labels 0, 1, ... (empty if unknown).
    state: (N,) uint8 of State; quarantine: row -> reason, for exactly the rows in state QUARANTINED.
    fingerprint: of the listing that was scanned, '' without a scan; others: of the files that are no images by their
    name, '' without such files.
    left_out: number of files that have no row, by kind: an extension, or the reason; None if that is not known (version
    1).
    check: what the scan did with each image: 'decode', or 'headers', which only read its header: who decodes the image
    first finds out whether it can be. 'none' is the same table, of images that the user answers for.
    bands: (N, B - 1, 3) int64 container, offset and length of the further files of each row, where an image is B files;
    None where it is one.
    pixels: the format of all images; if it is native, usable rows are in state ARRAY, else in the others.

    sources: of a table of several datasets, each one's path and number of rows; it is not saved.

    Raises ValueError if the columns contradict each other.
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
    others: str = ""
    left_out: dict[str, int] | None = field(default_factory=dict)
    check: str = DECODE
    pixels: PixelFormat = COLOR
    bands: NDArray[np.int64] | None = None
    sources: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "containers", Names.of(self.containers))
        for name, dtype in COLUMNS.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype))
        problem = _problem(self)
        if problem:
            raise ValueError(f"bad sample table: {problem}")

    def __len__(self) -> int:
        return len(self.container)

    @property
    def images(self) -> int:
        """Number of rows that are not quarantined."""
        return len(self) - len(self.quarantine)

    def usable(self) -> NDArray[np.int64]:
        """Rows that are not quarantined, ascending, (M,) int64."""
        return np.flatnonzero(self.state != State.QUARANTINED)

    def pixels_of(self, row: int) -> int:
        """Width times height of a row."""
        return int(self.width[row]) * int(self.height[row])

    def without_larger(self, most: int) -> SampleTable:
        """The table in which images of more than `most` pixels are quarantined, with the reason of a scan."""
        larger: list[int] = []
        for part in blocks(len(self)):
            pixels = self.width[part].astype(np.int64) * self.height[part]
            found = np.flatnonzero((pixels > most) & (self.state[part] != State.QUARANTINED))
            larger += (part.start + found).tolist()
        if not larger:
            return self
        state = np.array(self.state)
        state[larger] = State.QUARANTINED
        return replace(self, state=state, quarantine=dict(self.quarantine) | dict.fromkeys(larger, "too large"))

    def digest(self) -> str:
        """SHA-256 of the columns that training depends on: length, width, height, label and state of each row, and of
        a native pixel format. It does not change when the dataset is copied, moved or touched."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for column in (self.length, self.width, self.height, self.label, self.state):
            digest.update(column.data)
        if self.pixels.native:
            digest.update(str(self.pixels).encode())
        if self.bands is not None:
            digest.update(np.ascontiguousarray(self.bands[:, :, 2]).data)
        return digest.hexdigest()

    @property
    def loose(self) -> bool:
        """Whether every image is a separate file (a folder of images) or a frame of one, not a range of a shard."""
        rows = np.flatnonzero(self.offset)
        frames = not len(rows) or self.containers[self.container[rows[0]]].endswith(FRAME)  # most often not
        return frames and all(self.containers[file].endswith(FRAME) for file in np.unique(self.container[rows]))

    def files(self) -> list[str]:
        """The files of all containers, relative to `root`, each once."""
        return list(dict.fromkeys(map(file_of, self.containers)))

    def name(self, row: int) -> str:
        """Name of a row for messages: its file, or `shard.tar:member`."""
        file = str(self.containers[self.container[row]])
        offset = int(self.offset[row])
        if is_inside(file):
            return numbered(file, offset)
        return file if not offset else f"{file}:{_tar_member(self.root / file, offset) or f'byte {offset}'}"

    def save(self, path: Path, digests: Mapping[str, str] | None = None) -> None:
        """Write `path` (.npz) and a readable manifest `<stem>.json` in the same folder, each atomically.

        digests: SHA-256 by shard, if the caller has them; else the shards are read for them.
        """
        path = Path(path)
        inside = path.parent.resolve() == self.root.resolve()
        rows = np.fromiter(self.quarantine, np.int64, len(self.quarantine))
        texts: dict[str, Any] = {
            "root": "." if inside else str(self.root.resolve()),  # relative, so that a packed folder can be moved
            "fingerprint": self.fingerprint,
            "others": self.others,
            "left_out": self.left_out,
            "check": self.check,
        }
        if self.pixels.native:
            texts["pixels"] = {name: value for name, value in asdict(self.pixels).items() if name != "range"}
        containers = Names.of(self.containers)
        blobs = {
            "containers": containers.blob,
            "classes": Names.of(self.classes).blob,
            "reasons": Names.of(self.quarantine.values()).blob,
            "texts": json.dumps(texts).encode(),
        }
        arrays: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS}
        arrays |= {name: np.frombuffer(blob, np.uint8) for name, blob in blobs.items()}
        if self.bands is not None:
            arrays["bands"] = self.bands
        arrays |= {"version": np.int64(VERSION), "quarantined": rows, "container_ends": containers.ends}
        # The manifest comes first, so that no table exists without one.
        write_atomically(path.with_suffix(".json"), json.dumps(self._manifest(digests), indent=1) + "\n")
        with replacing(path) as file:
            write_columns(file, arrays)

    def _manifest(self, digests: Mapping[str, str] | None) -> dict[str, Any]:
        shards = [] if self.loose else self.files()
        if shards and digests is None:
            size = sum((self.root / name).stat().st_size for name in shards)
            with (
                progress_bar(size, "hashing the shards", "B", in_main_process()) as bar,
                ThreadPoolExecutor(8) as pool,  # hashlib releases the GIL
            ):
                sums = pool.map(lambda name: sha256(self.root / name, bar.update), shards)
                digests = dict(zip(shards, sums, strict=True))
        return {
            "version": VERSION,
            "rows": len(self),
            "usable": len(self) - len(self.quarantine),
            "through_pil": int((self.state == State.PIL).sum()),
            "check": self.check,
            "classes": list(self.classes),
            "left_out": self.left_out,
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
        """The table that `save` wrote. Raises DatasetError if the file is missing, damaged or of another version."""
        path = Path(path)
        advice = "delete it, and the table is built again"
        try:
            stored = read_columns(path)
            if "version" not in stored:
                raise DatasetError(f"{path}: not a sample table; {advice}")
            if int(stored["version"]) not in READ:
                problem = f"sample table of version {int(stored['version'])}, this program reads {READ}"
                raise DatasetError(f"{path}: {problem}; {advice}")
            texts = json.loads(stored["texts"].tobytes())
            reasons = Names(stored["reasons"].tobytes())
            columns: Any = {name: stored[name] for name in COLUMNS}
            if any(column.dtype != COLUMNS[name] or column.ndim != 1 for name, column in columns.items()):
                raise ValueError("a column has another dtype or shape")
            return cls(
                root=(path.parent / texts["root"]).resolve(),
                containers=Names(stored["containers"].data, stored.get("container_ends")),
                classes=tuple(Names(stored["classes"].tobytes())),
                quarantine=dict(zip(stored["quarantined"].tolist(), reasons, strict=True)),
                fingerprint=texts["fingerprint"],
                others=texts.get("others", ""),
                left_out=texts.get("left_out"),
                check=texts.get("check", DECODE),
                pixels=PixelFormat(**texts.get("pixels", {})),
                bands=stored.get("bands"),
                **columns,
            )
        except DatasetError:
            raise
        except FileNotFoundError:
            raise DatasetError(f"{path}: no such file") from None
        except NPZ_DAMAGE as error:
            raise DatasetError(f"{path}: damaged sample table ({_one_line(error)}); {advice}") from None


def row_dtype(table: SampleTable) -> type[np.signedinteger[Any]]:
    """The smallest dtype for arrays that hold a number of every row."""
    return np.int32 if len(table) < 2**31 else np.int64


def count_reasons(quarantine: Mapping[Any, str]) -> str:
    """Summary of a quarantine, row or name -> reason: '2 truncated, 1 zero bytes'."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(quarantine.values()).most_common())


def _problem(table: SampleTable) -> str:
    """The first contradiction in a table, '' if it has none."""
    rows = len(table.container)
    if any(len(getattr(table, name)) != rows for name in COLUMNS):
        return "columns of different lengths"
    if table.bands is not None and (table.bands.ndim != 3 or table.bands.shape[::2] != (rows, 3)):
        return "columns of different lengths"
    if table.bands is not None and table.bands[..., 0].max(initial=0) >= len(table.containers):
        return "a row points to a container that is not listed"
    quarantined = []
    for part in blocks(rows):
        container, label, state = table.container[part], table.label[part], table.state[part]
        if container.min() < 0 or container.max() >= len(table.containers):
            return "a row points to a container that is not listed"
        if min(column[part].min() for column in (table.offset, table.length, table.width, table.height)) < 0:
            return "a negative offset, length or size"
        if label.min() < -1 or (table.classes and label.max() >= len(table.classes)):
            return "a label without a class"
        if state.max() > max(State):
            return "an unknown state"
        if table.pixels.stored and (table.length[part][state == State.ARRAY] != _bare_bytes(table, part)).any():
            return "the length of an array is not that of its samples"
        raw = np.flatnonzero(state == State.RAW) + part.start
        if (table.length[raw] != 3 * table.width[raw].astype(np.int64) * table.height[raw]).any():
            return "the length of raw pixels is not 3 x width x height"
        if ((state == State.ARRAY) != (state != State.QUARANTINED) & table.pixels.native).any():
            return "the pixel format and the states disagree"
        quarantined += (np.flatnonzero(state == State.QUARANTINED) + part.start).tolist()
    if sorted(table.quarantine) != quarantined:
        return "the quarantine list and the states disagree"
    return ""


def _bare_bytes(table: SampleTable, part: slice) -> NDArray[np.int64]:
    """Bytes of the bare samples of the rows of a part that have some."""
    rows = np.flatnonzero(table.state[part] == State.ARRAY) + part.start
    of_pixel = table.pixels.channels * np.dtype(table.pixels.stored).itemsize
    return of_pixel * table.width[rows].astype(np.int64) * table.height[rows]


def _tar_member(path: Path, offset: int) -> str:
    """The name in the tar header just before `offset`; '' if there is no header."""
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
    return " ".join(str(error).split())[:200] or type(error).__name__
