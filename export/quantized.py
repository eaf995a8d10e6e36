"""ONNX graphs in float16 or int8 by onnxruntime's own tools, and what of the k-NN accuracy that costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional

from common.progress import progress_bar
from config.groups import sizes_of_crops
from model.nearest import predict
from model.sizes.trial import channels_of
from pipeline.batch import Batch
from pipeline.crops import Crops, crops_from_config, native_backend
from pipeline.dataset.labelled import Labelled, labelled_data
from pipeline.dataset.open import open_splits
from pipeline.dataset.table import SampleTable
from pipeline.loader import evaluation_batches
from training.trained_network import Trained

CALIBRATION, BATCH = 256, 32  # images from which int8 takes the ranges of values, and images a step
BACKEND = "torchvision"  # of the crops: it works on every machine
HALF_TOLERANCE = 0.02  # of the largest feature


@dataclass(frozen=True)
class Images:
    """table: images to calibrate on. labelled: those of the k-NN, None without labels. crops: the recipe's central
    ones. k, temperature: of the votes."""

    table: SampleTable
    labelled: Labelled | None
    crops: Crops
    k: int
    temperature: float

    def batches(self, table: SampleTable, rows: np.ndarray) -> Iterator[Batch]:
        backend = native_backend() if table.pixels.native else BACKEND
        return evaluation_batches(table, rows, self.crops, backend=backend, batch_size=BATCH)


def images_of(trained: Trained, path: str, size: int | None = None) -> Images:
    """The images at `path` with the recipe's central crops. size: of the crops; None: the recipe's evaluation.size.
    Raises ValueError or ConfigError, one line."""
    config = OmegaConf.create(trained.config)
    config.data.path, config.data.test = path, None
    table, test = open_splits(config.data, progress=True)
    if table.pixels.channels != (takes := channels_of(trained.network.backbone)):
        problem = f"the images are {table.pixels}, and the network takes {takes} channel{'s' * (takes != 1)}"
        raise ValueError(f"--data {path}: {problem}; give others")
    evaluation = config.evaluation
    side = size or (sizes_of_crops(config.crops)[0] if evaluation.size == "auto" else evaluation.size)
    crops = crops_from_config(config.crops, BACKEND).for_evaluation(side, evaluation.share)
    labelled = labelled_data(table, test, evaluation.max_train)
    return Images(table, labelled, crops, evaluation.k, evaluation.temperature)


def as_half(exact: Path, path: Path) -> None:
    """Write a float32 graph with float16 weights and arithmetic; images and features stay float32. Raises ValueError
    where it gives infinite values or other features than those of float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(exact), keep_io_types=True), path)
    images = np.random.default_rng(0).normal(size=(2, *_shape(exact))).astype(np.float32)
    one, other = (run(images) for run in (_session(exact), _session(path)))
    if not np.abs(one - other).max() <= HALF_TOLERANCE * np.abs(one).max():
        raise ValueError("--precision fp16: the features differ from those of float32, as values beyond 65,504 do")


def as_int8(exact: Path, path: Path, data: Images) -> None:
    """Write a float32 graph with int8 weights, by output channel, and int8 activations in the ranges that CALIBRATION
    images have."""
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    usable = data.table.usable()
    rows = usable[np.linspace(0, len(usable) - 1, min(CALIBRATION, len(usable))).astype(np.int64)]
    reader = _Reader(data.batches(data.table, rows))
    prepared = exact.with_name(f"{exact.stem}.prepared.onnx")
    logging.getLogger().setLevel(logging.ERROR)  # "consider pre-processing", which is done
    try:
        quant_pre_process(exact, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            reader,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        prepared.unlink(missing_ok=True)


class _Reader:
    """What `quantize_static` asks for the next inputs."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.crops[0].float().numpy()}


def loss_of(exact: Path, path: Path, precision: str, data: Images) -> str:
    """What the file at `path` loses against the float32 one, in a line: sizes, and with labels k-NN and features."""
    smaller = f"{precision}: {path.stat().st_size / 1e6:.2f} MB for {exact.stat().st_size / 1e6:.2f} MB in fp32"
    if data.labelled is None:
        return f"{smaller}; --data has no labels, so the k-NN lost is not known"
    one, other = (_features(_session(file), data) for file in (exact, path))
    likeness = functional.cosine_similarity(one[1], other[1]).mean()
    before, after = (_knn(*features, data) for features in (one, other))
    labelled = data.labelled
    return (
        f"{smaller}; k-NN {before:.2%} in fp32, {after:.2%} in {precision}: {100 * (before - after):.2f} points lost "
        f"({len(labelled.test_rows):,} test images among {len(labelled.train_rows):,}); mean cosine of the features "
        f"{likeness:.4f}"
    )


def _features(
    run: Callable[[np.ndarray], np.ndarray], data: Images
) -> tuple[Float[Tensor, "train dim"], Float[Tensor, "test dim"]]:
    """Features of length 1 of the images to compare with, and of those to score."""
    assert data.labelled is not None
    found = []
    parts = ((data.labelled.train, data.labelled.train_rows), (data.labelled.test, data.labelled.test_rows))
    with progress_bar(sum(len(rows) for _, rows in parts), "features", "img") as bar:
        for table, rows in parts:
            batches = []
            for batch in data.batches(table, rows):
                batches.append(torch.from_numpy(run(batch.crops[0].float().numpy())))
                bar.update(len(batch.rows))
            found.append(functional.normalize(torch.cat(batches)))
    return found[0], found[1]


def _knn(train: Tensor, test: Tensor, data: Images) -> float:
    assert data.labelled is not None
    classes = predict(train, torch.as_tensor(data.labelled.train_labels), test, data.k, data.temperature)
    return (classes == torch.as_tensor(data.labelled.test_labels)).double().mean().item()


def _session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["features"], {"images": images})[0]


def _shape(path: Path) -> tuple[int, int, int]:
    """Channels, height and width of the images that a graph takes; 64 pixels where it takes any."""
    import onnx

    _, channels, side, _ = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    return channels.dim_value, side.dim_value or 64, side.dim_value or 64
