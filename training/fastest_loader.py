"""`pipeline.backend=auto`: a new run times the backends on its own images and takes the fastest.

The loaders that are timed are others than the training loader, so no batch is lost and the order stays. Rank 0 measures
while the others wait, and all take what it found. The rates are kept beside the sample tables for the next run with the
same images, crops, machine and versions; a resumed run keeps its backend.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from common.files import write_atomically
from common.versions import versions
from pipeline.crops import crops_from_config, exact_color
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.table import SampleTable
from pipeline.fitting import shown
from pipeline.loader import Loader
from training.auto import HW_DECODER_LOAD
from training.build import backend_of, build_loader
from training.distributed import Cluster

SECONDS = 1.0  # for which a loader is timed
BATCH = 32  # images a process and batch of the loaders that are timed, at most
MORE_DECODER_LOAD = 0.9  # a chip with many JPEG engines keeps up with more than DALI's default

Choice = Mapping[str, Any]  # key -> value


def choices_of(
    config: DictConfig, begun_with: Mapping[str, Any] | None, cluster: Cluster, pixels: PixelFormat = COLOR
) -> list[Choice]:
    """What there is to choose from, before `fit` has chosen; nothing if the recipe names a backend or the run has one,
    and for images that keep their own channels, which one backend takes.

    begun_with: the settings with which the run has begun. pixels: of the images.
    """
    pipeline, exact = config.pipeline, config.crops.jitter.exact
    begun_pipeline = (begun_with or {}).get("pipeline", {})
    if pixels.native or pipeline.backend != "auto" or begun_pipeline.get("backend", "auto") != "auto":
        return []
    devices = ["gpu", "cpu"] if cluster.device().type == "cuda" else ["cpu"]
    if pipeline.device != "auto":
        devices = [pipeline.device]
    choices: list[Choice] = []
    for backend, device in (("ffcv", "gpu"), ("ffcv", "cpu"), ("dali", "gpu"), ("dali", "cpu")):
        loads = [pipeline.hw_decoder_load]
        if loads == ["auto"]:
            loads = [HW_DECODER_LOAD, MORE_DECODER_LOAD] if (backend, device) == ("dali", "gpu") else [HW_DECODER_LOAD]
        if device in devices and not (backend == "dali" and exact is True):
            choices += [
                {
                    "pipeline.backend": backend,
                    "pipeline.device": device,
                    "pipeline.hw_decoder_load": load,
                    "crops.jitter.exact": exact_color(exact, backend),
                }
                for load in loads
            ]
    return choices


def take_fastest(
    choices: list[Choice],
    config: DictConfig,
    table: SampleTable,
    loader: Loader,
    cluster: Cluster,
    say: Callable[[str], None],
) -> None:
    """Time all `choices` and let `loader` make its crops by the fastest; changes the settings (fitted) in place.

    A loader that fails is not taken: its reason stands in the line that `say` gets. Where all fail, nothing changes.
    All ranks must call it.
    """
    if not choices:
        return
    rates, source = cluster.on_main(lambda: known_or_timed(choices, config, table, cluster))
    said = ", ".join(
        f"{_name(choice)} {f'{rate:,.0f} images/s' if isinstance(rate, float) else f'fails ({rate})'}"
        for choice, rate in zip(choices, rates, strict=True)
    )
    numbers = [rate if isinstance(rate, float) else 0.0 for rate in rates]
    if not any(numbers):
        say(f"pipeline.backend={config.pipeline.backend}: {said}")
        return
    best = choices[numbers.index(max(numbers))]
    changed = [key for key, value in best.items() if OmegaConf.select(config, key) != value]
    _set(config, best)
    keys = ["pipeline.backend", *(key for key in changed if key != "pipeline.backend")]
    words = ", ".join(f"{key}={shown(OmegaConf.select(config, key))}" for key in keys)
    say(f"auto: {words}  ({said} a process, {source}; override with pipeline.backend=...)")
    if changed:
        crops = crops_from_config(config.crops, config.pipeline.backend, config.distill.crops)
        loader.use(crops=crops, **backend_of(config.pipeline, cluster))


def known_or_timed(
    choices: list[Choice], config: DictConfig, table: SampleTable, cluster: Cluster
) -> tuple[list[float | str], str]:
    """For each choice the images/s of this process, or why it fails; and where they are from."""
    file = Path(config.data.cache) / "backends" / f"{_key(choices, config, table, cluster)}.json"
    with suppress(OSError, ValueError):
        rates = json.loads(file.read_text())["rates"]
        if len(rates) == len(choices):
            return rates, f"timed before: {file}"
    rates = [_timed(choice, config, table, cluster) for choice in choices]
    with suppress(OSError):  # the next run times them again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"choices": [dict(choice) for choice in choices], "rates": rates}, indent=1))
    return rates, "timed on these images"


def _timed(choice: Choice, config: DictConfig, table: SampleTable, cluster: Cluster) -> float | str:
    trial = OmegaConf.masked_copy(config, list(config))
    _set(trial, choice)
    here = config.run.batch_size // cluster.world_size
    trial.run.batch_size = min(here, BATCH) * cluster.world_size
    try:
        crops = crops_from_config(trial.crops, trial.pipeline.backend, trial.distill.crops)
        with closing(build_loader(trial, table, crops, cluster)) as loader:
            return images_per_second(batches_of(loader), cluster.device())
    except Exception as error:  # whatever stops a backend here: another one may work
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def batches_of(loader: Loader) -> Iterator[int]:
    """The images of each batch, epoch after epoch."""
    return (len(batch.rows) for _ in count() for batch in loader)


def images_per_second(batches: Iterator[int], device: torch.device) -> float:
    """The rate of a loader once it has begun: its first two batches wait for threads and memory."""
    next(batches), next(batches)
    begun, images = time.perf_counter(), 0
    while time.perf_counter() < begun + SECONDS or not images:
        images += next(batches)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return images / (time.perf_counter() - begun)


def _set(config: DictConfig, choice: Choice) -> None:
    for key, value in choice.items():
        OmegaConf.update(config, key, value)


def _name(choice: Choice) -> str:
    on_gpu, load = choice["pipeline.device"] == "gpu", choice["pipeline.hw_decoder_load"]
    name = f"{choice['pipeline.backend']}{' on the GPU' if on_gpu else ''}"
    return f"{name}, hw_decoder_load={load}" if on_gpu and choice["pipeline.backend"] == "dali" else name


def _key(choices: list[Choice], config: DictConfig, table: SampleTable, cluster: Cluster) -> str:
    device = cluster.device()
    here = {
        "images": table.digest(),
        "choices": [dict(choice) for choice in choices],
        "crops": [OmegaConf.to_container(section) for section in (config.crops, config.distill.crops)],
        "batch": config.run.batch_size // cluster.world_size,
        "threads": config.pipeline.threads,
        "processes": cluster.local_world_size,
        "cores": len(os.sched_getaffinity(0)),
        "machine": [platform.node(), platform.machine()],
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
