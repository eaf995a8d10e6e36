"""One function per export format: each writes the file and returns the lines of Python that load it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from export.counterparts import standard_resnet, timm_counterpart, torchvision_counterpart
from export.detectron2 import write_detectron2
from export.libraries import library_code
from export.model_card import header, model_card
from export.onnx_graph import write_onnx
from export.programs import write_pt2, write_torchscript
from export.transformers import write_transformers
from model.resnet import ResNet
from model.weights import published_names
from training.trained_network import Trained


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
    """Lines that load the file with the library that has the network, or else with swave's own modules."""
    if code := library_code(trained):
        loading = "from safetensors.torch import load_file"
        return [loading, *code, 'network.load_state_dict(load_file("model.safetensors"))']
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
