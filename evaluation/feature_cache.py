"""Features kept on disk: computed once for weights, images and crops, by all processes together, in parts.

    data/features/<backbone>-<key>/about.json     what they are of
    data/features/<backbone>-<key>/part-00000.npy   rows of the table in their order, float32, as the network gave them

A part is written to one side, synced and renamed, so what was interrupted goes on with the parts that are missing, on
any number of processes. Each process reads its own parts and they are exchanged, so the folder need not be shared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from common.files import replacing, write_atomically
from common.progress import progress_bar
from evaluation.features import gather
from evaluation.session import MAX_BAD, Place
from pipeline.crops import Crops
from pipeline.dataset.table import SampleTable
from pipeline.loader import evaluation_batches

VERSION = 1
SMALLEST, LARGEST = 256, 4096  # rows of a part: enough parts to share out and to resume from, few enough files


def features(
    function: Callable[[Tensor], Tensor],
    about: dict[str, Any],
    table: SampleTable,
    rows: np.ndarray,
    crops: Crops,
    place: Place,
    what: str = "features",
) -> Float[Tensor, "rows features"]:
    """`function` of the central crops of `rows`, float32, on the CPU, in the rows' order, on every process.

    function: images on place.device -> features. about: what, beside images, crops and backend, decides what comes
    out (the weights' digest, the stage). Raises DatasetError where too many images cannot be read.
    """
    cluster, size = place.cluster, part_size(len(rows))
    key = cache_key(about, table, rows, crops, place.backend)
    folder = None if place.cache is None else place.cache / f"{_plain(about['backbone'])}-{key[:16]}"
    if folder is not None and cluster.main:
        folder.mkdir(parents=True, exist_ok=True)
        _write_about(folder, about, table, len(rows), crops)
    elif folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    mine = list(range(cluster.rank, -(-len(rows) // size), cluster.world_size))
    found = {part: values for part in mine if (values := _read(folder, part, rows, size)) is not None}
    missing = [part for part in mine if part not in found]
    left = sum(len(_rows(rows, part, size)) for part in missing)
    with progress_bar(left, what, "img", cluster.main and left > 0) as bar:
        for part, values in _computed(function, table, rows, crops, place, missing, size, bar):
            found[part] = values
            if folder is not None:
                with replacing(folder / f"part-{part:05d}.npy") as file:
                    np.save(file, values)
    return _exchanged(found, mine, len(rows), size, place)


def part_size(rows: int) -> int:
    """Rows of a part: alike for any number of processes."""
    return min(LARGEST, max(SMALLEST, -(-rows // 64)))


def cache_key(about: dict[str, Any], table: SampleTable, rows: np.ndarray, crops: Crops, backend: str) -> str:
    """SHA-256 of all that decides the features. Of images: sizes, labels, names, times, not bytes."""
    digest = hashlib.sha256(json.dumps([VERSION, about, backend, repr(crops)], sort_keys=True).encode())
    digest.update(table.digest().encode())
    digest.update(f"{table.root} {table.fingerprint}".encode())
    if not table.loose:
        for name in table.containers:
            found = (table.root / name).stat()
            digest.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    digest.update(np.ascontiguousarray(rows, np.int64).tobytes())
    return digest.hexdigest()


def _rows(rows: np.ndarray, part: int, size: int) -> np.ndarray:
    return rows[part * size : (part + 1) * size]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:] or "backbone"


def _write_about(folder: Path, about: dict[str, Any], table: SampleTable, rows: int, crops: Crops) -> None:
    known = {**about, "images": str(table.root), "rows": rows, "crops": repr(crops)}
    write_atomically(folder / "about.json", json.dumps(known, indent=1) + "\n")


def _read(folder: Path | None, part: int, rows: np.ndarray, size: int) -> np.ndarray | None:
    """A part that was written before, None if it is not there or not whole."""
    if folder is None:
        return None
    try:
        values = np.load(folder / f"part-{part:05d}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.ndim == 2 and len(values) == len(_rows(rows, part, size)) else None


@torch.no_grad()
def _computed(
    function: Callable[[Tensor], Tensor],
    table: SampleTable,
    rows: np.ndarray,
    crops: Crops,
    place: Place,
    parts: list[int],
    size: int,
    bar: Any,
) -> Iterator[tuple[int, np.ndarray]]:
    """Each part's features as soon as its last image is through; one stream of batches for all parts."""
    if not parts:
        return
    wanted = np.concatenate([_rows(rows, part, size) for part in parts])
    batches = evaluation_batches(
        table,
        wanted,
        crops,
        backend=place.backend,
        batch_size=max(1, min(place.batch // place.cluster.world_size, len(wanted))),
        threads=place.threads,
        device_id=place.device_id,
        max_bad_fraction=MAX_BAD,
    )
    left, waiting, count = list(parts), [], 0
    for batch in batches:
        with place.precision():
            waiting.append(function(batch.crops[0].to(place.device, torch.float32, non_blocking=True)).float().cpu())
        count += len(batch.rows)
        bar.update(len(batch.rows))
        while left and count >= (needed := len(_rows(rows, left[0], size))):
            values = torch.cat(waiting)
            yield left.pop(0), values[:needed].numpy()
            waiting, count = [values[needed:]], count - needed


def _exchanged(found: dict[int, np.ndarray], mine: list[int], rows: int, size: int, place: Place) -> Tensor:
    """All processes' parts in the rows' order."""
    own = [torch.from_numpy(found[part]) for part in mine]
    if place.cluster.world_size == 1:
        return torch.cat(own)
    width = torch.tensor([own[0].shape[1] if own else 0], device=place.device)
    torch.distributed.all_reduce(width, torch.distributed.ReduceOp.MAX)
    values = torch.cat(own) if own else torch.zeros(0, int(width))
    gathered = gather(values.to(place.device)).cpu()
    parts = -(-rows // size)
    order = np.concatenate(
        [np.arange(part * size, min((part + 1) * size, rows))
         for rank in range(place.cluster.world_size) for part in range(rank, parts, place.cluster.world_size)]
    )  # fmt: skip
    ordered = torch.empty_like(gathered)
    ordered[torch.from_numpy(order)] = gathered
    return ordered
