"""What a run's directory holds for its report: metrics, settings, and the folder `report` with the watched images."""

from __future__ import annotations

import io
import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from common.files import NPZ_DAMAGE, replacing, write_atomically

FOLDER = "report"
SIDE = 48  # pixels of a small image, at most


@dataclass(frozen=True)
class FixedImages:
    """Watched images, the same after each epoch: pixels, and the number of the class or -1."""

    pixels: UInt8[np.ndarray, "images side side 3"]
    label: Int[np.ndarray, " images"]


@dataclass(frozen=True)
class Seen:
    """What the network makes of the watched images after `epoch` epochs. All numbers are indices of images.

    neighbors: for each of `queries` the nearest other images by the cosine of their features, the nearest first.
    prototypes: the largest ones, as {"number", "size", "images"}: how many watched images they are the nearest
    prototype of, and those with the highest scores.
    """

    epoch: int
    queries: list[int]
    neighbors: list[list[int]]
    prototypes: list[dict[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """What is there of a run. Parts that are missing or damaged are empty or None."""

    directory: Path
    metrics: list[dict[str, Any]]
    settings: dict[str, Any]
    chosen: dict[str, str]  # key -> value and reason of each setting that was `auto`
    marks: dict[str, Any]  # summary.json and untrained.json
    crops: bytes | None = None
    images: FixedImages | None = None
    seen: list[Seen] = field(default_factory=list)

    @property
    def epochs(self) -> list[float]:
        """The epoch of each line of the metrics, as a number of passes over the images."""
        ends = [(line["step"], line["epoch"] + 1) for line in self.metrics if "mean_loss" in line]
        steps = ends[-1][0] / ends[-1][1] if ends and ends[-1][1] else math.inf
        if not math.isfinite(steps):  # in the first epoch
            steps = 2 * max([line["step"] for line in self.metrics], default=1) or 1
        return [line["step"] / steps for line in self.metrics]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values of the lines that have a number under `name`."""
        points = [
            (x, line[name])
            for x, line in zip(self.epochs, self.metrics, strict=True)
            if isinstance(line.get(name), int | float)
        ]
        return [x for x, _ in points], [y for _, y in points]


def read_run(directory: Path) -> RunFiles:
    """The files of a run that is finished, at work or interrupted. Raises FileNotFoundError if it has no metrics."""
    metrics = []
    for line in (directory / "metrics.jsonl").read_bytes().splitlines():
        with suppress(ValueError, RecursionError):  # the last one may be half written
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int) and "warning" not in values:
                metrics.append({"epoch": 0} | values)
    marks = _json(directory / "summary.json") | _json(directory / "untrained.json")
    folder, crops, images = directory / FOLDER, None, None
    with suppress(OSError):
        crops = (folder / "crops.png").read_bytes()
    with suppress(*NPZ_DAMAGE), np.load(folder / "images.npz") as saved:
        images = FixedImages(saved["pixels"], saved["label"])
    seen = []
    for path in sorted(folder.glob("epoch-*.json")):
        with suppress(TypeError):
            seen.append(Seen(**_json(path)))
    return RunFiles(
        directory, metrics, _settings(directory), _json(directory / "auto.json"), marks, crops, images, seen
    )


def save_images(directory: Path, images: FixedImages) -> None:
    """Write the small images. Raises OSError."""
    (directory / FOLDER).mkdir(exist_ok=True)
    with replacing(directory / FOLDER / "images.npz") as file:
        np.savez_compressed(file, pixels=images.pixels, label=images.label)


def save_crops(directory: Path, sheet: Image.Image) -> bytes:
    """Write the sheet of images with their crops; returns the PNG. Raises OSError."""
    (directory / FOLDER).mkdir(exist_ok=True)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    with replacing(directory / FOLDER / "crops.png") as file:
        file.write(buffer.getvalue())
    return buffer.getvalue()


def save_seen(directory: Path, seen: Seen) -> None:
    """Write what was seen after an epoch, in place of an earlier try. Raises OSError."""
    (directory / FOLDER).mkdir(exist_ok=True)
    path = directory / FOLDER / f"epoch-{seen.epoch:06d}.json"
    write_atomically(path, json.dumps(asdict(seen)) + "\n", durable=False)


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_bytes())
        if isinstance(values, dict):
            return values
    return {}


def _settings(directory: Path) -> dict[str, Any]:
    """config.yaml as one mapping of dotted keys."""
    import yaml

    with suppress(OSError, ValueError, yaml.YAMLError):
        return dict(_flat(yaml.safe_load((directory / "config.yaml").read_text("utf-8"))))
    return {}


def _flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        return [(prefix, node)] if prefix else []
    return [pair for key, value in node.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
