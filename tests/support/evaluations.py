"""A tiny run, tiny images and evaluate.py's sub-commands, for tests."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from config.recipe import ROOT, load_config
from model.backbone import build_backbone
from model.optimizer.groups import parameter_groups
from model.optimizer.lars import LARS
from model.optimizer.segments import Layout
from model.swav import SwAV
from pipeline.dataset.open import open_splits
from pipeline.fitting import fit_to_pixels
from support.photos import write_folder
from training.checkpoint.masters import network_shapes, network_tensors
from training.checkpoint.save_load import save_checkpoint

RESNET = {"block": "basic", "layers": [1, 1], "base_width": 8, "stem": "small", "stem_stride": 2}
PUBLISHED = {"block": "bottleneck", "layers": [1, 1, 1, 1], "base_width": 16}


def images_of_three_classes(root: Path, count: int, seed: int) -> Path:
    """Noisy images of 20 pixels, their class in the brightness: easy, but not without mistakes."""
    noise = np.random.default_rng(seed)
    images = [noise.integers(0, 160, (20, 20, 3)) + noise.integers(0, 45) + 25 * (i % 3) for i in range(count)]
    return write_folder(root, [image.astype(np.uint8) for image in images], classes=3)


def small_dataset(root: Path, train: int = 90, test: int = 30) -> Path:
    images_of_three_classes(root / "train", train, 0)
    images_of_three_classes(root / "val", test, 1)
    return root


def small_run(directory: Path, data: Path, channels: int = 3) -> Path:
    """A run's directory with one checkpoint of a network with random weights. channels: of the images; mean and
    deviation of images that are not RGB are computed, as for a run."""
    config = load_config(["config/demo.yaml", f"data.path={data}", f"data.cache={directory}/tables"])
    options = RESNET if channels == 3 else RESNET | {"in_chans": channels}
    if channels != 3:
        config.pipeline.backend = config.crops.mean = config.crops.std = "auto"
        fit_to_pixels(config, open_splits(config.data, progress=False)[0], progress=False)
    config.model = {
        **config.model,
        "options": options,
        "hidden_dim": 16,
        "embedding_dim": 8,
        "prototypes": 6,
        "heads": 1,
    }
    config.evaluation.size, config.evaluation.share = 16, 1.0
    torch.manual_seed(0)
    network = SwAV(build_backbone("resnet", **options), 16, 8, 6)
    optimizer = LARS(parameter_groups(network), lr=0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    optimizer.layout = Layout.of_whole(optimizer.param_groups, names)
    state = {"step": 7, "images": 90, "loader": {"epoch": 3, "samples": 0}, "config": OmegaConf.to_container(config)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}.store", rank=0, world_size=1)
    try:
        state |= network_shapes(network, optimizer)
        save_checkpoint(directory / "checkpoints", state, network_tensors(network, optimizer, 0, 1), keep=1)
    finally:
        torch.distributed.destroy_process_group()
    return directory


def published_network() -> SwAV:
    torch.manual_seed(1)
    return SwAV(build_backbone("resnet", **PUBLISHED), 32, 8, 20).eval()


def published_file(path: Path, network: SwAV) -> Path:
    """A network's weights in the layout of the published checkpoints."""
    weights = {f"module.{key.removeprefix('backbone.')}": value for key, value in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 1}, path)
    return path


def evaluate(capsys, *arguments: object, command: str = "knn") -> dict:
    """Run a sub-command in this process; its result file, and its output as `text`. Fails with its error line."""
    words = [str(argument) for argument in arguments]
    code = importlib.import_module(f"evaluation.commands.{command}").main(words)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(Path(words[words.index("--json") + 1]).read_text()) | {"text": printed.out}


def mistake(capsys, *arguments: object, command: str = "knn") -> str:
    """Run a sub-command that ends with exit code 2; its one error line."""
    try:
        code = importlib.import_module(f"evaluation.commands.{command}").main([str(word) for word in arguments])
    except SystemExit as end:
        code = end.code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("swave: ")]
    assert code == 2
    assert len(lines) == 1
    return lines[0]


def script(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "evaluate.py"), *map(str, arguments)]
