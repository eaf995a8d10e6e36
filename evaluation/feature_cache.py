"""Caches features on disk: computed once for weights, images and crops, in parts, by all processes together.

    data/features/<backbone>-<key>/about.json       the network, images and crops
    data/features/<backbone>-<key>/part-00000.npz   raw features of some rows of the table, in their order, float32

Parts are written atomically, so an interrupted evaluation resumes with the missing parts on any number of processes.
Each process reads its own parts and sends them to the others, so the folder need not be shared.
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

from common.files import NPZ_DAMAGE, replacing, write_atomically
from common.progress import progress_bar
from evaluation.features import gather
from evaluation.session import MAX_BAD, Session
from pipeline.crops import Crops
from pipeline.dataset.table import SampleTable
from pipeline.loader import evaluation_batches

VERSION = 2
SMALLEST, LARGEST = 256, 4096  # rows of a part: enough parts to distribute and resume, but not too many files


def cached_features(
    function: Callable[[Tensor], Tensor],
    source: dict[str, Any],
    table: SampleTable,
    rows: np.ndarray,
    crops: Crops,
    session: Session,
    title: str = "features",
) -> Float[Tensor, "rows features"]:
    """`function` of the central crops of `rows`, float32, on the CPU, in the order of `rows`, on every process.

    function: images on session.device -> features. source: what determines the features besides images, crops and
    backend, such as the digest of the weights and the stage. title: of the progress bar. Raises DatasetError if too
    many images are unreadable.
    """
    cluster, size = session.cluster, part_size(len(rows))
    key = cache_key(source, table, rows, crops, session.backend)
    folder = None if session.cache is None else session.cache / f"{_file_name(source['backbone'])}-{key[:16]}"
    if folder is not None and cluster.main:
        folder.mkdir(parents=True, exist_ok=True)
        _write_about(folder, source, table, len(rows), crops)
    elif folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    own = list(range(cluster.rank, -(-len(rows) // size), cluster.world_size))
    computed = {part: values for part in own if (values := _read(folder, part, rows, size)) is not None}
    missing = [part for part in own if part not in computed]
    left = sum(len(_rows(rows, part, size)) for part in missing)
    with progress_bar(left, title, "img", cluster.main and left > 0) as bar:
        for part, values in _computed(function, table, rows, crops, session, missing, size, bar):
            computed[part] = values
            if folder is not None:
                with replacing(folder / f"part-{part:05d}.npz") as file:
                    np.savez(file, features=values)
    return _exchanged(computed, own, len(rows), size, session)


def part_size(rows: int) -> int:
    """Rows of a part, independent of the number of processes."""
    return min(LARGEST, max(SMALLEST, -(-rows // 64)))


def cache_key(source: dict[str, Any], table: SampleTable, rows: np.ndarray, crops: Crops, backend: str) -> str:
    """SHA-256 of everything that determines the features; for images of sizes, labels, names and times, not bytes."""
    digest = hashlib.sha256(json.dumps([VERSION, source, backend, repr(crops)], sort_keys=True).encode())
    digest.update(table.digest().encode())
    digest.update(f"{table.root} {table.fingerprint}".encode())
    if table.pixels.native:
        digest.update(repr(table.pixels).encode())  # with layout and range, which change the values
    if not table.loose:
        for name in table.files():
            status = (table.root / name).stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    digest.update(np.ascontiguousarray(rows, np.int64).tobytes())
    return digest.hexdigest()


def _rows(rows: np.ndarray, part: int, size: int) -> np.ndarray:
    return rows[part * size : (part + 1) * size]


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:] or "backbone"


def _write_about(folder: Path, source: dict[str, Any], table: SampleTable, rows: int, crops: Crops) -> None:
    known = {**source, "images": str(table.root), "rows": rows, "crops": repr(crops)}
    write_atomically(folder / "about.json", json.dumps(known, indent=1) + "\n")


def _read(folder: Path | None, part: int, rows: np.ndarray, size: int) -> np.ndarray | None:
    """A part that was written before; None if it is missing or damaged, which its CRC-32 shows."""
    if folder is None:
        return None
    try:
        with np.load(folder / f"part-{part:05d}.npz", allow_pickle=False) as stored:
            values = stored["features"]
    except NPZ_DAMAGE:
        return None
    return values if values.ndim == 2 and len(values) == len(_rows(rows, part, size)) else None


@torch.no_grad()
def _computed(
    function: Callable[[Tensor], Tensor],
    table: SampleTable,
    rows: np.ndarray,
    crops: Crops,
    session: Session,
    parts: list[int],
    size: int,
    bar: Any,
) -> Iterator[tuple[int, np.ndarray]]:
    """Number and features of each part, as soon as it is complete; all parts share one stream of batches."""
    if not parts:
        return
    part_rows = np.concatenate([_rows(rows, part, size) for part in parts])
    batches = evaluation_batches(
        table,
        part_rows,
        crops,
        backend=session.backend_for(table),
        batch_size=max(1, min(session.batch // session.cluster.world_size, len(part_rows))),
        threads=session.threads,
        device_id=session.device_id,
        max_bad_fraction=MAX_BAD,
    )
    left, pending, count = list(parts), [], 0
    for batch in batches:
        with session.precision():
            pending.append(function(batch.crops[0].to(session.device, torch.float32, non_blocking=True)).float().cpu())
        count += len(batch.rows)
        bar.update(len(batch.rows))
        while left and count >= (needed := len(_rows(rows, left[0], size))):
            values = torch.cat(pending)
            yield left.pop(0), values[:needed].numpy()
            pending, count = [values[needed:]], count - needed


def _exchanged(computed: dict[int, np.ndarray], parts: list[int], rows: int, size: int, session: Session) -> Tensor:
    """The parts of all processes, in the order of the rows."""
    own = [torch.from_numpy(computed[part]) for part in parts]
    if session.cluster.world_size == 1:
        return torch.cat(own)
    width = torch.tensor([own[0].shape[1] if own else 0], device=session.device)
    torch.distributed.all_reduce(width, torch.distributed.ReduceOp.MAX)
    values = torch.cat(own) if own else torch.zeros(0, int(width))
    gathered = gather(values.to(session.device)).cpu()
    count = -(-rows // size)
    order = np.concatenate(
        [np.arange(part * size, min((part + 1) * size, rows))
         for rank in range(session.cluster.world_size) for part in range(rank, count, session.cluster.world_size)]
    )  # fmt: skip
    ordered = torch.empty_like(gathered)
    ordered[torch.from_numpy(order)] = gathered
    return ordered
