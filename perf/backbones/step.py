"""A step of training with a model as backbone, and its features beside those of timm's plain network."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

RECIPE = "config/demo.yaml"
BATCH = 2  # images
CROPS = {"global": 2, "local": 1}  # of an image; fewer are no run
SETTINGS = (
    *("data.path=none", f"run.batch_size={BATCH}", "run.epochs=1", "pipeline.backend=torchvision"),
    *("model.hidden_dim=16", "model.embedding_dim=8", "model.prototypes=8"),
    *("optimizer.name=lars", "optimizer.base_lr=2", "optimizer.warmup_epochs=0"),
    *("swav.queue.length=0", "evaluation.probe=false"),
    *(f"crops.{kind}.count={count}" for kind, count in CROPS.items()),
)
NOISE = 0.02  # added to parameters before features are compared: some tables start at zero


def take_step(name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """One step of a run on noise, with DeepSpeed's engine and LARS: "feature_dim", "adapted", and for adapted models of
    timm "difference". Needs a process group. Raises any exception."""
    import torch

    from config.recipe import load_config
    from model.libraries.names import library_of
    from perf.step.steps import Steps
    from training.auto import fit
    from training.distributed import Cluster

    pair = [f"crops.{kind}.size={size}" for kind, size in zip(CROPS, sizes, strict=True)]
    given = [*SETTINGS, *pair, f"evaluation.size={sizes[0]}", f"model.backbone={name}"]
    config, cluster = load_config([RECIPE, *given]), Cluster()
    fit(config, BATCH, cluster)
    steps = Steps(config, cluster, BATCH)
    backbone: Any = steps.network.backbone
    before = [value.detach().clone() for value in backbone.parameters()]
    loss = steps.step(iter([steps.noise(channels_last=True)]))
    after = [value.detach() for value in backbone.parameters()]
    if not all(bool(value.isfinite().all()) for value in (loss, *after)):
        raise ValueError("after a step its loss or parameters are infinite or NaN")
    if all(map(torch.equal, before, after)):
        raise ValueError("a step does not move it")
    found: dict[str, Any] = {"feature_dim": int(backbone.feature_dim), "adapted": bool(backbone._forward_pre_hooks)}
    if found["adapted"] and not library_of(name)[0]:
        found["difference"] = max(difference(name, backbone.eval(), size) for size in sizes)
    del steps, backbone
    gc.collect()  # an engine is a circle of objects
    return found


def difference(name: str, network: Any, size: int) -> float:
    """The largest difference between the network's features and those of the one that timm builds for images of this
    size in pixels, relative to the largest feature. Both get the network's weights, changed by noise; tables of another
    shape are resampled."""
    import timm
    import torch
    from torch import nn

    from model.sizes.tables import resample

    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, img_size=size).eval()
    linear = {key for key, module in plain.named_modules() if isinstance(module, nn.Linear | nn.Conv1d)}
    images = torch.randn(BATCH, 3, size, size)
    with torch.no_grad():
        own = dict(network.named_parameters())
        for key, value in plain.named_parameters():
            own[key].add_(NOISE * torch.randn_like(own[key]))
            value.copy_(resample(own[key], value.shape, key.rpartition(".")[0] in linear))
        statistics = network.state_dict()
        for key, value in plain.state_dict().items():
            if key not in own and value.shape == statistics[key].shape:
                value.copy_(statistics[key])
        expected = plain(images)
        return float((network(images) - expected).abs().max() / expected.abs().max())
