"""The contenders of the loader benchmark, and how to make each."""

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
    """Input of the contenders: the table, its JPEGs in memory, crops, images a batch, and a folder for their files."""

    table: SampleTable
    jpegs: Jpegs
    crops: Crops
    batch: int
    scratch: Path
    files: list[str] = field(default_factory=list)  # of the table, for contenders that read only files


def crops_of(config: str | None, settings: Sequence[str]) -> Crops:
    """The crops of a recipe (None: the defaults) with `key=value` settings. Raises ValueError for mistakes in them."""
    data = [] if any(text.startswith("data.path=") for text in settings) else ["data.path=none"]
    return crops_from_config(load_config([config or str(DEFAULTS), *data, *settings]).crops)


def line_up(backends: Sequence[str], enough: bool, threads: int) -> list[Key]:
    """All contenders, in the order in which to make them. enough: whether memory holds a batch owners JPEGs."""
    one_core = [1] if threads > 1 and "ffcv" in backends else []
    keys: list[Key] = [("ffcv-stock-one-view", "crops", threads)]  # first: FFCV's writer forks
    keys += [(name, "full", threads) for name in ("torchvision", "dali-random", "dali", "ffcv-affine")]
    for cores in (threads, *one_core):
        keys += [("ffcv", "full", cores), ("ffcv", "crops", cores), ("libjpeg-turbo", "decode", cores)]
    keys += [("ffcv-kernel", "full", threads)]
    owners = {"libjpeg-turbo": None, "ffcv-kernel": "ffcv"}  # included with this backend; None: always
    chosen = [key for key in keys if owners.get(key[0], key[0]) in (None, *backends)]
    return [key for key in chosen if enough or not in_memory(key)]


def in_memory(key: Key) -> bool:
    """Whether a contender takes JPEGs from memory."""
    return key[0] in NEEDS_JPEGS or key[1] == "crops"


def make(key: Key, material: Material) -> Contender:
    """Make one contender."""
    from perf.images import files_of
    from perf.loader import peers, swave_loaders

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
        return swave_loaders.kernel(mode, material.jpegs, crops, batch, cores)
    return swave_loaders.loader(backend, material.table, crops, batch, cores)
