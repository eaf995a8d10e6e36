"""Who takes part in the loader's benchmark, and how each is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.recipe import DEFAULTS, load_config
from pipeline.crops import Crops, crops_from_config

if TYPE_CHECKING:
    from perf.images import Jpegs
    from perf.interleaved import Contender
    from pipeline.dataset.table import SampleTable

BACKENDS = ("ffcv", "ffcv-affine", "dali", "dali-random", "torchvision", "ffcv-stock-one-view")
Key = tuple[str, str, int]  # backend, mode and cores of a contender
READS_FILES = ("torchvision", "dali-random")
NEEDS_JPEGS = ("ffcv-stock-one-view", "ffcv-kernel", "libjpeg-turbo")


@dataclass(frozen=True)
class Material:
    """What contenders work on: the table, its JPEGs in memory, the crops, images a batch, and a folder to write to."""

    table: SampleTable
    jpegs: Jpegs
    crops: Crops
    batch: int
    scratch: Path
    files: list[str] = field(default_factory=list)  # filled where a contender knows only files


def crops_of(config: str | None, settings: Sequence[str]) -> Crops:
    """The crops of a recipe with `key=value` settings; without a recipe the defaults'. Raises ValueError."""
    data = [] if any(text.startswith("data.path=") for text in settings) else ["data.path=none"]
    return crops_from_config(load_config([config or str(DEFAULTS), *data, *settings]).crops)


def line_up(backends: Sequence[str], enough: bool, threads: int) -> list[Key]:
    """All contenders in the order in which they are made; `enough`: whether a batch of JPEGs is in memory."""
    one_core = [1] if threads > 1 and "ffcv" in backends else []
    found: list[Key] = [("ffcv-stock-one-view", "crops", threads)]  # first: FFCV's writer forks
    found += [(name, "full", threads) for name in ("torchvision", "dali-random", "dali", "ffcv-affine")]
    for cores in (threads, *one_core):
        found += [("ffcv", "full", cores), ("ffcv", "crops", cores), ("libjpeg-turbo", "decode", cores)]
    found += [("ffcv-kernel", "full", threads)]
    of = {"libjpeg-turbo": None, "ffcv-kernel": "ffcv"}  # belongs to whom
    wanted = [key for key in found if of.get(key[0], key[0]) in (None, *backends)]
    return [key for key in wanted if enough or not in_memory(key)]


def in_memory(key: Key) -> bool:
    """Whether a contender works on JPEGs in memory."""
    return key[0] in NEEDS_JPEGS or key[1] == "crops"


def make(key: Key, material: Material) -> Contender:
    """One contender, ready."""
    from perf.images import files_of
    from perf.loader import ours, peers

    backend, mode, cores = key
    crops, batch = material.crops, material.batch
    if backend in READS_FILES and not material.files:
        material.files.extend(files_of(material.table, material.scratch))
    makers: dict[str, Any] = {
        "ffcv-stock-one-view": lambda: peers.ffcv_stock(material.jpegs, crops, batch, cores, material.scratch),
        "torchvision": lambda: peers.torchvision(material.files, crops, batch, cores),
        "dali-random": lambda: peers.dali_random(material.files, crops, batch, cores),
    }
    if backend in makers:
        return makers[backend]()
    if in_memory(key):
        return ours.kernel(mode, material.jpegs, crops, batch, cores)
    return ours.loader(backend, material.table, crops, batch, cores)
