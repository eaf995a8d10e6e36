"""Settings that follow from the pixels of the images: normalization, color, backend and the network's channels."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from config.errors import ConfigError
from pipeline.crops import COLOR_VALUES, native_backend, native_backends
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.table import SampleTable
from pipeline.stats import rounded, statistics_of

OF_COLOR = ("jitter.saturation", "jitter.hue", "grayscale")  # of the crops; without color there is nothing to change


def fit_to_pixels(config: DictConfig, table: SampleTable | None, progress: bool = True) -> list[str]:
    """Replace every `auto` that the pixels of the training images decide, in place. Returns a line for each choice.

    table: None stands for pictures in 8-bit RGB. Of images with their own channels the statistics are computed, if
    they are not there yet; progress: with a bar. Raises ConfigError where settings and images do not fit, and
    DatasetError as `statistics_of` does.
    """
    pixels = COLOR if table is None else table.pixels
    values = dict(COLOR_VALUES)
    choices: list[str] = []
    why = "pictures in 8-bit RGB"
    if table is not None and pixels.native:
        why = f"images of {pixels}"
        if "auto" in (config.crops.mean, config.crops.std):
            workers = config.data.workers or len(os.sched_getaffinity(0))
            statistics, file = statistics_of(table, Path(config.data.cache), workers, progress)
            values |= {"mean": rounded(statistics.mean), "std": rounded(statistics.std)}
            why += f", statistics of {file}"
        choices += _fit_backend(config, pixels)
        if pixels.range and config.data.range == "auto":
            config.data.range = [list(ends) for ends in pixels.range]
            of = f"percentiles {shown(config.data.stretch)} of the training images"
            choices.append(f"data.range={shown(config.data.range)}  ({of}; override with data.range=...)")
    choices += _fit_network(config, pixels)
    if not pixels.is_color:
        values |= dict.fromkeys(OF_COLOR, 0.0)
    chosen = {key: value for key, value in values.items() if OmegaConf.select(config.crops, key) == "auto"}
    for key, value in chosen.items():
        OmegaConf.update(config.crops, key, value)
    if chosen:
        words = ", ".join(f"crops.{key}={shown(value)}" for key, value in chosen.items())
        choices.append(f"{words}  ({why}; override with KEY=...)")
    _check(config, pixels)
    return choices


def shown(value: Any) -> str:
    """A number, text or list of numbers as a recipe has it."""
    if isinstance(value, list | ListConfig):
        return f"[{', '.join(map(shown, value))}]"
    return str(value).lower() if isinstance(value, str | bool) else f"{value:g}"


def _fit_backend(config: DictConfig, pixels: PixelFormat) -> list[str]:
    backend = config.pipeline.backend
    if backend == "auto":
        config.pipeline.backend = native_backend()
        return [f"pipeline.backend={config.pipeline.backend}  (it keeps {pixels}; override with pipeline.backend=...)"]
    if backend not in (able := native_backends(pixels.is_color)):
        raise ConfigError(
            f"pipeline.backend={backend}: expected {' or '.join(able)} or auto for images of {pixels}, or "
            "data.channels=rgb, which makes 8-bit RGB of picture files"
        )
    return []


def _fit_network(config: DictConfig, pixels: PixelFormat) -> list[str]:
    """Tell the network, and the teacher of a distillation, the number of channels by the option that our ResNets and
    timm have for it."""
    choices = []
    for section in ("model", "distill") if config.method == "distill" else ("model",):
        options = config[section].options
        given = options.get("in_chans", pixels.channels)
        if given != pixels.channels:
            expected = f"{pixels.channels}, the channels of data.path; leave it out"
            raise ConfigError(f"{section}.options.in_chans={given}: expected {expected}")
        if pixels.channels != 3 and "in_chans" not in options:
            OmegaConf.update(config, f"{section}.options", {"in_chans": pixels.channels}, merge=True, force_add=True)
            choices.append(f"{section}.options.in_chans={pixels.channels}  (images of {pixels})")
    return choices


def _check(config: DictConfig, pixels: PixelFormat) -> None:
    """Raise ConfigError for numbers of other channels, and for changes of color where there is none."""
    crops = config.crops
    for key in ("mean", "std"):
        if len(crops[key]) != pixels.channels:
            numbers = f"{pixels.channels} number{'s' * (pixels.channels != 1)}"
            expected = f"auto or {numbers}, one a channel of data.path ({pixels})"
            raise ConfigError(f"crops.{key}={shown(crops[key])}: expected {expected}")
    if pixels.is_color:
        return
    named = [("crops", crops), *((f"crops.groups[{index}]", group) for index, group in enumerate(crops.groups))]
    for (name, section), key in product(named, OF_COLOR):
        value = OmegaConf.select(section, key)
        unused = key != "grayscale" and OmegaConf.select(section, "jitter.probability") == 0
        if value not in (None, "auto", 0) and not unused:
            raise ConfigError(f"{name}.{key}={shown(value)}: expected auto or 0, {pixels} are no color")
