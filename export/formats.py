"""One function per export format: each writes the file and returns the lines of Python that load it."""

from __future__ import annotations

import gc
import importlib.util
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from export.counterparts import TOLERANCE, standard_resnet, timm_counterpart, torchvision_counterpart
from export.detectron2 import write_detectron2
from export.model_card import header, model_card
from export.programs import takes_any_size, write_pt2, write_torchscript
from export.transformers import write_transformers
from model.resnet import ResNet
from model.weights import published_names
from training.trained_network import Trained

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LIMIT = 2**31 - 2**20  # bytes: the limit of a protobuf, less room for the graph


def write_torchvision(trained: Trained, path: Path) -> list[str]:
    """Write a state dict for torchvision.models, without classifier."""
    counterpart = torchvision_counterpart(trained)
    _save(_tensors(counterpart.network), path)
    return [*counterpart.code, f'network.load_state_dict(torch.load("{path.name}", weights_only=True))']


def _save(value: dict[str, Any], path: Path) -> None:
    """torch.save by way of memory. On a full disk it raises a RuntimeError that does not say why; this an OSError."""
    content = io.BytesIO()
    torch.save(value, content)
    path.write_bytes(content.getbuffer())


def write_timm(trained: Trained, path: Path) -> list[str]:
    """Write a state dict for timm.create_model(..., num_classes=0)."""
    counterpart = timm_counterpart(trained)
    _save(_tensors(counterpart.network), path)
    return [*counterpart.code, f'network.load_state_dict(torch.load("{path.name}", weights_only=True))']


def write_swav(trained: Trained, path: Path) -> list[str]:
    """Write backbone, projection head and prototypes in the layout of the published checkpoints."""
    weights = published_names(_tensors(trained.network), trained.network.heads)
    _save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    return [
        "import torch",
        f'weights = torch.load("{path.name}", weights_only=True)["state_dict"]',
        "# or start a run from it: model.weights=" + path.name,
    ]


def write_safetensors(trained: Trained, path: Path) -> list[str]:
    """Write a folder with the backbone's weights and README.md, the model card."""
    path.mkdir()
    weights = save(_tensors(trained.network.backbone), metadata=header(trained))
    (path / "model.safetensors").write_bytes(weights)  # save_file raises no OSError on a full disk
    code = _safetensors_code(trained)
    (path / "README.md").write_text(model_card(trained, code))
    return code


def _safetensors_code(trained: Trained) -> list[str]:
    """Lines that load the file with timm if timm has the network, or else with swave's own modules."""
    if not isinstance(trained.network.backbone, ResNet) or standard_resnet(trained):
        return [
            "import timm; from safetensors.torch import load_file",
            timm_counterpart(trained).code[-1],
            'network.load_state_dict(load_file("model.safetensors"))',
        ]
    arguments = ", ".join([repr(trained.backbone_name), *(f"{key}={v!r}" for key, v in trained.options.items())])
    return [
        "from model.backbone import build_backbone; from model.weights import load_weights  # in swave's folder",
        f"network = build_backbone({arguments}).eval()",
        'load_weights(network, "model.safetensors")',
    ]


# ---------------------------------------------------------------------- ONNX
def write_onnx(trained: Trained, path: Path) -> list[str]:
    """Write the backbone as a graph: images [batch, 3, height, width] -> features [batch, feature_dim], float32.

    Any batch size works, and with convolutional networks any height and width; other networks take the size of the
    global crops. Raises ValueError (one line) if packages are missing or the backbone cannot be exported.
    """
    missing = [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"format onnx needs {', '.join(missing)}: .venv/bin/python -m pip install {' '.join(ONNX_PACKAGES)}"
        )
    backbone = trained.network.backbone
    size = sum(value.nbytes for value in backbone.state_dict().values())
    if size > ONNX_LIMIT:
        raise ValueError(
            f"an ONNX file holds at most 2 GiB, this backbone has {size / 2**30:.1f} GiB; use format safetensors"
        )
    side = int(trained.config["crops"]["global"]["size"])
    free_size = takes_any_size(backbone)
    try:
        program = _trace(backbone, side, free_size)
    except torch.onnx.errors.OnnxExporterError:
        program, free_size = _trace_fixed(backbone, side), False  # e.g. a perceptron over positions fixes the size
    program.model.metadata_props.update(header(trained))
    program.save(path, external_data=False)
    _check(backbone, path, side, free_size)
    return [
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{path.name}")',
        'features = session.run(["features"], {"images": images})[0]  # float32 [batch, 3, height, width], normalized',
    ]


def _trace(backbone: nn.Module, side: int, free_size: bool) -> torch.onnx.ONNXProgram:
    axes = {0: "batch", 2: "height", 3: "width"} if free_size else {0: "batch"}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    gc.disable()  # the export parses Python, which fails in Python 3.11 (SystemError) if a finalizer runs meanwhile
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                backbone,
                (torch.zeros(2, 3, side, side),),
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


def _trace_fixed(backbone: nn.Module, side: int) -> torch.onnx.ONNXProgram:
    try:
        return _trace(backbone, side, free_size=False)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"torch.onnx cannot trace this backbone ({reason}); use format safetensors") from None


@torch.no_grad()
def _check(backbone: nn.Module, path: Path, side: int, free_size: bool) -> None:
    """Raise ValueError unless the file gives the backbone's features, for another batch and size than in tracing."""
    import onnxruntime

    height, width = (side + 32, side + 64) if free_size else (side, side)
    images = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (values,) = session.run(["features"], {"images": images.numpy()})
    features, expected = torch.from_numpy(values), backbone(images)
    if features.shape != expected.shape or (features - expected).abs().max() > TOLERANCE * expected.abs().max():
        raise ValueError("the ONNX file gives other features than this backbone; use format safetensors")


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's tensors: torch.save would write the whole storage of a view, and Parameters."""
    return {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()}


WRITERS = {
    "torchvision": write_torchvision,
    "timm": write_timm,
    "transformers": write_transformers,
    "swav": write_swav,
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "torchscript": write_torchscript,
    "pt2": write_pt2,
    "detectron2": write_detectron2,
}
