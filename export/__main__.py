"""Writes trained weights in the formats that other libraries load.

    make export CKPT=runs/demo OUT=resnet50.pth FORMAT=torchvision
    python -m export CKPT OUT --format FORMAT [--force]

    torchvision  state dict for torchvision.models: ResNet-18/34/50, vision transformers; without classifier
    timm         state dict for timm.create_model(name, num_classes=0): ResNet-18/34/50, any backbone of timm
    transformers a folder for AutoModel.from_pretrained: ResNet, ViT, DINOv2, DINOv3, ConvNeXt
    swav         backbone, projection head and prototypes in the published checkpoints' layout, for model.weights
    safetensors  a folder with the backbone's weights and a model card
    onnx         the backbone as a graph, for any batch and, if convolutional, any size; --size fixes it,
                 --precision fp16 or int8 makes it smaller, and with --data tells the k-NN accuracy lost
    torchscript  the same as a program for torch.jit.load
    pt2          the same as a program for torch.export.load
    detectron2   a ResNet for object detection in detectron2, a .pkl; for DETR use torchvision: docs/detection.md

CKPT is a run's directory (its latest checkpoint) or a folder checkpoints/step-...; CKPT@teacher is its teacher. A
checkpoint with a backbone of your own code needs its name: CKPT@module:function. OUT is written atomically.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from os.path import expanduser
from pathlib import Path
from typing import Any

from common.cli import Parser, exit_on_mistake
from common.progress import progress_bar
from model.libraries.names import split_own_code

FORMATS = ("torchvision", "timm", "transformers", "swav", "safetensors", "onnx", "torchscript", "pt2", "detectron2")
RGB_ONLY = ("transformers", "detectron2")  # what surrounds the network there reads 8-bit RGB
SUFFIXES = {"detectron2": ".pkl", "pt2": ".pt2"}
# the files of formats that write a folder
FOLDER_FILES = {
    "safetensors": {"model.safetensors", "README.md"},
    "transformers": {"model.safetensors", "README.md", "config.json", "preprocessor_config.json"},
}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("python -m export", __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "checkpoint", metavar="CKPT", type=expanduser, help="a run's directory, or a folder checkpoints/step-..."
    )
    parser.add_argument(
        "out", metavar="OUT", type=expanduser, help="file to write, or folder (safetensors, transformers)"
    )
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--force", action="store_true", help="replace OUT")
    onnx = parser.add_argument_group("format onnx")
    onnx.add_argument("--size", type=int, help="the only height and width, in pixels (default: any, if convolutional)")
    onnx.add_argument("--precision", default="fp32", help="fp32, fp16 or int8 (default %(default)s)")
    onnx.add_argument(
        "--data", type=expanduser, help="images: int8 is calibrated on them; with labels, k-NN is compared"
    )
    given = parser.parse_args(arguments)
    with exit_on_mistake():
        for name, value in (("CKPT", given.checkpoint), ("OUT", given.out)):
            if not value:
                raise ValueError(f"{name} is missing; e.g. make export CKPT=runs/demo OUT=x.pth FORMAT=torchvision")
        try:
            options = {"precision": given.precision, "size": given.size, "data": given.data}
            path, own = (given.checkpoint, "") if Path(given.checkpoint).exists() else split_own_code(given.checkpoint)
            code = export(Path(path), Path(given.out), given.format, given.force, options, own)
        except OSError as error:
            raise ValueError(f"{error.filename or given.out}: {error.strerror or error}") from None
    print(f"wrote {given.out}; to load it:\n")
    print("\n".join(f"    {_from_here(line, Path(given.out), given.format)}" for line in code))
    return 0


def _from_here(line: str, out: Path, format: str) -> str:
    """A line that loads the file beside it, as one for the folder in which the command runs."""
    file = out / "model.safetensors" if format == "safetensors" else out
    line = line.replace(f"model.weights={file.name}", f"model.weights={file}")
    return re.sub(rf"""(["']){re.escape(file.name)}\1""", lambda quoted: f"{quoted[1]}{file}{quoted[1]}", line)


def export(
    path: Path, out: Path, format: str, force: bool = False, onnx_options: dict[str, Any] | None = None, own: str = ""
) -> list[str]:
    """Write the network of `path` (a run's directory or a checkpoint) to `out`; returns the Python that loads it.

    own: what the user names in place of the checkpoint's module:function or transformers:FOLDER.
    format: one of FORMATS. force: replace `out` if it looks like an earlier export in this format. onnx_options: for
    `export.onnx_graph.OnnxOptions`.

    Raises ValueError (one line) for any mistake, and then leaves `out` unchanged.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; give {', '.join(FORMATS)}")
    _check_out(out, format, force)
    given = {key: value for key, value in (onnx_options or {}).items() if value not in (None, "fp32")}
    if given and format != "onnx":
        raise ValueError(f"--{next(iter(given))} is for format onnx, not {format}; leave it out")
    from export.formats import WRITERS
    from export.onnx_graph import OnnxOptions, check_options
    from model.sizes.trial import channels_of
    from training.trained_network import read_trained

    if format == "onnx":
        check_options(OnnxOptions(**given))
    with progress_bar(3, f"export to {format}", "part") as bar:
        trained = read_trained(path, own)
        channels = channels_of(trained.network.backbone)
        if format in RGB_ONLY and channels != 3:
            problem = f"it is for RGB, and this backbone takes {channels} channel{'s' * (channels != 1)}"
            raise ValueError(f"format {format}: {problem}; use torchvision, timm, swav, safetensors or onnx")
        bar.update()
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            made = Path(folder) / out.name
            code = WRITERS[format](trained, made, **({"options": OnnxOptions(**given)} if given else {}))
            bar.update()
            _put(made, out)
            bar.update()
    return code


def _check_out(out: Path, format: str, force: bool) -> None:
    files = FOLDER_FILES.get(format)
    if files and out.suffix == ".safetensors":
        raise ValueError(f"OUT={out}: format {format} makes a folder (weights, model card); leave the suffix out")
    if out.suffix != (suffix := SUFFIXES.get(format, out.suffix)):
        raise ValueError(f"OUT={out}: format {format} is recognized by the suffix {suffix}; give {out.stem}{suffix}")
    if not out.exists():
        return
    if not force:
        raise ValueError(f"OUT={out} exists; give another name, or --force (make export ARGS=--force) to replace it")
    if out.is_dir() != bool(files) or (files and not {path.name for path in out.iterdir()} <= files):
        raise ValueError(f"OUT={out} exists and is not an export in this format; give another name")


def _put(made: Path, out: Path) -> None:
    """Sync, then rename. A folder cannot replace another by a rename: the old one moves next to `made` and is deleted
    with it."""
    from common.files import sync

    for path in [*made.iterdir(), made] if made.is_dir() else [made]:
        sync(path)
    if out.is_dir():
        old = made.with_name(f"{out.name}.old")
        out.rename(old)
        try:
            made.rename(out)
        except BaseException:
            old.rename(out)
            raise
    else:
        made.replace(out)
    sync(out.parent)


if __name__ == "__main__":
    sys.exit(main())
