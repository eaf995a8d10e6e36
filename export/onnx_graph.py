"""Writes a backbone as an ONNX graph, in float32 or, for less memory and time, in float16 or int8."""

from __future__ import annotations

import copy
import gc
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from config.groups import sizes_of_crops
from export.counterparts import TOLERANCE
from export.model_card import header
from export.programs import takes_any_size
from export.quantized import Images, as_half, as_int8, images_of, loss_of
from model.sizes.trial import channels_of
from training.trained_network import Trained

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LIMIT = 2**31 - 2**20  # bytes: the limit of a protobuf, less room for the graph
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class OnnxOptions:
    """precision: one of PRECISIONS. size: pixels of the only height and width; None: any, where the backbone takes any.
    data: images as for data.path. int8 calibrates on them; with labels, the export prints the k-NN lost."""

    precision: str = "fp32"
    size: int | None = None
    data: str | None = None


def check_options(options: OnnxOptions) -> None:
    """Raises ValueError, one line, for values that do not fit, or where a package is missing."""
    if options.precision not in PRECISIONS:
        raise ValueError(f"--precision {options.precision}: give {', '.join(PRECISIONS)}")
    if options.precision == "int8" and options.data is None:
        raise ValueError("--precision int8 needs --data IMAGES: the ranges of values are taken from some of them")
    if options.precision == "fp32" and options.data is not None:
        raise ValueError("--data is for --precision fp16 or int8: fp32 loses nothing")
    if options.size is not None and options.size < 1:
        raise ValueError(f"--size {options.size}: give a number of pixels")
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"format onnx needs {', '.join(missing)}: .venv/bin/python -m pip install {' '.join(PACKAGES)}"
        )


def write_onnx(trained: Trained, path: Path, options: OnnxOptions | None = None) -> list[str]:
    """Write the backbone as a graph: images [batch, channels, height, width] -> features [batch, feature_dim], float32
    in any precision. Returns the lines that load it, and what the precision loses.

    Any batch size works, and with convolutional networks any height and width; other networks take the size of the
    global crops. Raises ValueError (one line) if packages are missing or the backbone cannot be exported.
    """
    options = options or OnnxOptions()
    check_options(options)
    backbone = trained.network.backbone
    size = sum(value.nbytes for value in backbone.state_dict().values())
    if size > LIMIT:
        raise ValueError(
            f"an ONNX file holds at most 2 GiB, this backbone has {size / 2**30:.1f} GiB; use format safetensors"
        )
    data = None if options.data is None else images_of(trained, options.data, options.size)
    side = options.size or sizes_of_crops(trained.config["crops"])[0]
    free_size = options.size is None and takes_any_size(backbone)
    program, free_size = _traced(backbone if free_size else _of_size(backbone, side), side, free_size)
    program.model.metadata_props.update(header(trained))
    program.save(path, external_data=False)
    _check(backbone, path, side, free_size)
    shape = f"[batch, {channels_of(backbone)}, height, width]"
    lines = [
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{path.name}")',
        f'features = session.run(["features"], {{"images": images}})[0]  # float32 {shape}, normalized',
    ]
    return lines if options.precision == "fp32" else [*lines, *_made_smaller(path, options.precision, data)]


def _made_smaller(path: Path, precision: str, data: Images | None) -> list[str]:
    """Replace the file by one of a lower precision; words about what that loses."""
    exact = path.with_name(f"{path.stem}.fp32.onnx")
    path.rename(exact)
    try:
        if precision == "fp16":
            as_half(exact, path)
        else:
            assert data is not None
            as_int8(exact, path, data)
        return [] if data is None else [f"# {loss_of(exact, path, precision, data)}"]
    finally:
        exact.unlink()


def _of_size(backbone: nn.Module, side: int) -> nn.Module:
    """A copy with a table of positions for images of this size, where timm makes one: ONNX has no interpolation with
    antialiasing as torch computes it."""
    if not hasattr(backbone, "set_input_size"):
        return backbone
    fixed = copy.deepcopy(backbone)
    try:
        fixed.set_input_size(img_size=side)  # type: ignore[operator]
    except Exception:  # of any type: the comparison judges what the backbone as it is becomes
        return backbone
    return fixed.eval()


def _traced(backbone: nn.Module, side: int, free_size: bool) -> tuple[torch.onnx.ONNXProgram, bool]:
    """The graph, and whether it takes any size."""
    problem: BaseException | None = None
    # A perceptron over positions fixes the size; torch 2.11 fails with fused attention that adds biases or has windows.
    for free, attention in (*(((True, nullcontext),) if free_size else ()), (False, nullcontext), (False, _unfused)):
        try:
            with attention():
                return _trace(backbone, side, free), free
        except torch.onnx.errors.OnnxExporterError as error:
            problem = error.__cause__ or error
    reason = " ".join(str(problem).split())[:200]
    raise ValueError(f"torch.onnx cannot trace this backbone ({reason}); use format safetensors")


@contextmanager
def _unfused() -> Iterator[None]:
    """Within the block attention is a product, a softmax and a product, also over more than four axes."""

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if is_causal or enable_gqa:
            return fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            allowed = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, float("-inf")) if allowed else scores + attn_mask
        return scores.softmax(-1) @ value

    fused, functional.scaled_dot_product_attention = functional.scaled_dot_product_attention, attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused


def _trace(backbone: nn.Module, side: int, free_size: bool) -> torch.onnx.ONNXProgram:
    axes = {0: "batch", 2: "height", 3: "width"} if free_size else {0: "batch"}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    gc.disable()  # the export parses Python, which fails in Python 3.11 (SystemError) if a finalizer runs meanwhile
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                backbone,
                (torch.zeros(2, channels_of(backbone), side, side),),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=(axes,),
                dynamo=True,
                verbose=False,
            )
    finally:
        gc.enable()
    assert program is not None
    return program


@torch.no_grad()
def _check(backbone: nn.Module, path: Path, side: int, free_size: bool) -> None:
    """Raise ValueError unless the file gives the backbone's features, for another batch and size than in tracing."""
    import onnxruntime

    height, width = (side + 32, side + 64) if free_size else (side, side)
    shape = 3, channels_of(backbone), height, width
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (values,) = session.run(["features"], {"images": images.numpy()})
    features, expected = torch.from_numpy(values), backbone(images)
    if features.shape != expected.shape or (features - expected).abs().max() > TOLERANCE * expected.abs().max():
        raise ValueError("the ONNX file gives other features than this backbone; use format safetensors")
