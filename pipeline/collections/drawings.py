"""From drawings in files to packed images: put on white, shrunk, near-duplicates found, split and packed."""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from PIL import Image

from common.files import write_atomically
from common.processes import in_processes
from common.progress import counted, progress_bar
from pipeline.collections.near_duplicates import for_test, groups_of, perceptual_hash
from pipeline.dataset.images import BadImage, opened
from pipeline.dataset.shards import Record, pack
from pipeline.dataset.table import DatasetError, SampleTable

LONGEST = 128  # pixels of the longer side: enough for crops of 96
MOST_PIXELS = 25_000_000  # of a file; 16 of Open Clip Art have up to 620 million
SPLITS = ("train", "test")
ABOUT = "about.json"
SEED = 20061130  # of the order in which they are packed


class Drawing(NamedTuple):
    """A file to pack. name: of letters, digits, - and _; subject: drawings of one stay on one side; label: or -1."""

    path: Path
    name: str
    subject: int
    label: int


class Read(NamedTuple):
    """A drawing as PNG, and its perceptual hash."""

    png: bytes
    hash: Bool[NDArray, " 64"]


def on_white(path: Path) -> Read | None:
    """The drawing on white, its longer side at most LONGEST pixels; None if it is damaged or over MOST_PIXELS."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such a file is left out
            picture = opened(path.read_bytes(), MOST_PIXELS).convert("RGBA")
    except (BadImage, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return None
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)  # Pillow weights colors by their opacity
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    file = io.BytesIO()
    white.convert("RGB").save(file, "PNG")
    return Read(file.getvalue(), perceptual_hash(white))


def pack_drawings(
    drawings: Sequence[Drawing], classes: tuple[str, ...], out: Path, license: str, workers: int, progress: bool
) -> dict[str, SampleTable]:
    """Pack `out`/train and `out`/test, unless they are there, and write `out`/about.json with the counts.

    A key is GROUP/NAME; near-duplicates and drawings of one subject have the same group. Raises DatasetError.
    """
    with progress_bar(len(drawings), "reading drawings", "img", progress) as bar:
        read = in_processes(on_white, iter([drawing.path for drawing in drawings]), workers)
        pairs = [(drawing, got) for drawing, got in zip(drawings, counted(read, bar, lambda _: 1), strict=True) if got]
    if not pairs:
        raise DatasetError(f"{out}: no drawing can be read")
    kept = [drawing for drawing, _ in pairs]
    hashes = np.stack([got.hash for _, got in pairs])
    alone = groups_of(hashes, range(len(kept)))
    groups = groups_of(hashes, [drawing.subject for drawing in kept])
    tested = for_test(groups, [drawing.name for drawing in kept])
    about = {
        "license": license,
        "images": {"train": int((~tested).sum()), "test": int(tested.sum())},
        "with_near_duplicates": int((np.bincount(alone)[alone] > 1).sum()),
        "groups": len(np.unique(groups)),
        "left_out": len(drawings) - len(kept),
        "classes": {name: Counter(drawing.label for drawing in kept)[n] for n, name in enumerate(classes)},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / ABOUT, json.dumps(about, indent=1) + "\n")
    order = np.random.RandomState(SEED).permutation(len(kept))
    for split, rows in zip(SPLITS, (order[~tested[order]], order[tested[order]]), strict=True):
        if not (out / split / "table.npz").exists():
            records = _records(pairs, groups, rows)
            pack(records, out / split, split, classes, workers=workers, progress=progress, total=len(rows))
    return tables_of(out)


def _records(pairs: Sequence[tuple[Drawing, Read]], groups: NDArray, rows: NDArray) -> Iterator[Record]:
    for row in rows:
        drawing, read = pairs[row]
        yield Record(f"{groups[row]:05d}/{drawing.name}", read.png, "png", drawing.label)


def complete(out: Path) -> bool:
    """Whether both splits are packed."""
    return all((out / split / "table.npz").exists() for split in SPLITS)


def tables_of(out: Path) -> dict[str, SampleTable]:
    return {split: SampleTable.load(out / split / "table.npz") for split in SPLITS}
