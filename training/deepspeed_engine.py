"""The DeepSpeed engine, configured from the recipe's `engine:` section."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from config.recipe import ConfigError
from model.backbone import checkpoint_activations, stride_outside, weights_channels_last
from model.batchnorm import replace_batch_norm
from model.swav import SwAV
from pipeline.crops import crops_from_config
from training.compiled import compile_and_check
from training.deepspeed_keys import check_keys
from training.distributed import Cluster, quiet_deepspeed
from training.gradient_averaging import Averaging
from training.zero import bind

BROKEN = {  # keys of DeepSpeed that break this trainer, and why
    "zero_optimization.round_robin_gradients": "it makes DeepSpeed's map of the partitions wrong, and so LARS",
    "bf16": "its masters and batch norm differ from those of engine.precision=bf16; use that",
    "amp": "DeepSpeed has removed it; engine.precision=bf16 or fp16 does the same",
    "optimizer": "swave brings its own optimizer; see the section optimizer",
    "pipeline": "swave has no pipeline stages",
    "tensor_parallel": "swave splits no layer over processes",
    "data_efficiency": "swave's own loader gives the images; see the section data",
    "scheduler": "swave sets the learning rate; see the section optimizer",
}

FOLDERS = {"wandb": "WANDB_DIR", "comet": "COMET_OFFLINE_DIRECTORY"}  # DeepSpeed hands them no folder

PERSISTENT = 400_000  # elements: stage 3 keeps smaller parameters whole, so it need not gather them one by one


def deepspeed_config(config: DictConfig, world_size: int, device: str, parameters: int) -> dict[str, Any]:
    """The configuration that DeepSpeed gets, including everything under engine.deepspeed.

    config: after `training.auto`. device: "cpu" or "cuda". parameters: elements of the network; an automatic bucket
    holds an eighth of them. Raises ConfigError for keys that the recipe sets elsewhere, that break this trainer or
    that DeepSpeed does not know.
    """
    engine = config.engine
    bucket = engine.bucket_size
    if bucket == "auto":  # DeepSpeed's default of 5e8 overlaps nothing: a ResNet-50 has 2.8e7
        bucket = min(max(parameters // 8, 1_000_000), 200_000_000) // 2 * 2  # DeepSpeed needs an even number
    zero: dict[str, Any] = {"stage": engine.stage}
    if engine.stage > 0:
        zero |= {
            "overlap_comm": bool(device == "cuda" and world_size > 1),
            "contiguous_gradients": True,
            "parameter_alignment": True,  # aligns weights in the flat buffer for the kernels
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        }
    if engine.stage == 3:
        zero |= {"stage3_param_persistence_threshold": PERSISTENT, "stage3_prefetch_bucket_size": bucket}
        # DeepSpeed's default of 1e9 would keep gathered parameters from forward to backward, most networks for ever
        zero |= {"stage3_max_live_parameters": 2 * bucket, "stage3_max_reuse_distance": 0}
    if engine.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device == "cuda"}
    elif engine.stage in (1, 2) and engine.precision != "fp16" and not engine.clipping:
        zero["compute_grad_norm"] = False  # unused, and it makes the host wait for the device each step
    base: dict[str, Any] = {
        "train_batch_size": config.run.batch_size,
        "train_micro_batch_size_per_gpu": config.run.batch_size // world_size // engine.accumulation,
        "gradient_accumulation_steps": engine.accumulation,
        "gradient_clipping": float(engine.clipping),  # DeepSpeed's default is 1.0; SwAV does not clip
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": engine.wall_clock_breakdown,
        "timers": {"throughput": {"enabled": False}},  # on by default, and then it synchronizes twice a step
        "steps_per_print": 2**31 - 1,
    }
    if engine.comms_logger:  # DeepSpeed turns it on wherever the section stands, "enabled": false or not
        base["comms_logger"] = {"enabled": True, "prof_all": True}
    if engine.precision == "bf16":
        # Parameters and batch norm stay float32, at every stage; convolutions and linear layers run in bfloat16.
        base["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if engine.precision == "fp16":
        scaling = {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 1}
        base["fp16"] = {"enabled": True, **scaling}
    extra: Any = OmegaConf.to_container(engine.deepspeed)
    settings = _merged(base, extra)
    check_keys(settings, extra)
    return _with_outputs(settings, config.run.directory)


def _with_outputs(settings: dict[str, Any], directory: str) -> dict[str, Any]:
    """The settings with a file below the run's directory for each output of DeepSpeed that names none.

    DeepSpeed would write into the working directory, and the profile into the middle of the run's own lines.
    """
    below = os.path.join(directory, "deepspeed")
    outputs = {
        "tensorboard": {"output_path": below, "job_name": "tensorboard"},
        "csv_monitor": {"output_path": below, "job_name": "csv_monitor"},
        "flops_profiler": {"output_file": os.path.join(below, "flops_profile.txt")},
    }
    enabled = {name: paths for name, paths in outputs.items() if settings.get(name, {}).get("enabled")}
    return settings | {
        name: paths | {key: value for key, value in settings[name].items() if value not in (None, "")}
        for name, paths in enabled.items()
    }


def _merged(base: dict[str, Any], extra: dict[str, Any], above: str = "") -> dict[str, Any]:
    """`base` with `extra` merged in, section by section. Raises ConfigError for keys that may not be set."""
    merged = dict(base)
    for key, value in extra.items():
        path = f"{above}{key}"
        if path in BROKEN and value not in (False, None):
            raise ConfigError(f"engine.deepspeed.{path}={value}: {BROKEN[path]}; leave it out")
        if path == "torch_autocast" or (path == "fp16" and "fp16" not in base):
            reason = " (float16 by torch_autocast is broken under ZeRO)" if path == "torch_autocast" else ""
            raise ConfigError(f"engine.deepspeed.{path}: set engine.precision=bf16 or fp16 instead{reason}")
        if isinstance(base.get(key), dict) and not isinstance(value, dict):
            raise ConfigError(f"engine.deepspeed.{path}={value}: expected a section, as DeepSpeed has it")
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], value, f"{path}.")
        elif key in base and base[key] != value and not _tunable(path):
            raise ConfigError(f"engine.deepspeed.{path}={value} is set by the recipe ({base[key]}), leave it out")
        else:
            merged[key] = value
    return merged


def _tunable(path: str) -> bool:
    """Whether the user may change a key that the recipe sets: it affects only speed or loss scaling."""
    section, _, name = path.partition(".")
    fixed = ("stage", "offload_optimizer", "compute_grad_norm", "enabled")
    return section in ("fp16", "zero_optimization", "comms_logger", "timers", "steps_per_print") and name not in fixed


def build_engine(config: DictConfig, network: SwAV, optimizer: Any, cluster: Cluster, device: torch.device) -> Any:
    """The DeepSpeed engine around `network`: call it for a forward pass, then `.backward(loss)` and `.step()`.

    All ranks call it; all parameters become those of rank 0. Batch norm is replaced by the synchronized one. DeepSpeed
    uses the given optimizer, which learns which parameters its tensors hold (`training.zero.bind`). Raises ConfigError,
    or ValueError if DeepSpeed is not as `training.zero` expects.
    """
    if device.type == "cpu":
        stride_outside(network)
    replace_batch_norm(network, config.engine.sync_batch_norm, cluster.world_size, cluster.rank, equal_batches=True)
    channels_last = config.engine.stage == 0 and config.engine.precision != "fp16"
    if config.engine.activation_checkpointing:
        checkpoint_activations(network.get_submodule("backbone"))
    if config.engine.compile:
        dtype = torch.float32 if config.engine.precision == "fp16" else input_dtype(config)  # DeepSpeed makes it half
        if channels_last:  # as later: a compiled graph does not notice another layout
            weights_channels_last(network)
        compile_and_check(network, _groups(config, cluster), dtype, device, config.engine.cuda_graphs)
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # for DeepSpeed's broadcast
    groups = [list(group["params"]) for group in optimizer.param_groups]
    parameters = sum(p.numel() for group in groups for p in group)
    settings = deepspeed_config(config, cluster.world_size, device.type, parameters)
    for section, variable in FOLDERS.items():
        if settings.get(section, {}).get("enabled"):
            os.environ.setdefault(variable, os.path.join(config.run.directory, "deepspeed"))
            Path(os.environ[variable]).mkdir(parents=True, exist_ok=True)
    deepspeed = quiet_deepspeed()
    deepspeed.utils.logger.setLevel(logging.ERROR)  # "untested optimizer": tests/training/test_zero.py tests it
    flags = [group["frozen"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["frozen"] = True  # at stage 0 in fp16 DeepSpeed takes a step to create the optimizer state
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)
    for group, frozen in zip(optimizer.param_groups, flags, strict=True):
        group["frozen"] = frozen
    deepspeed.utils.logger.setLevel(logging.WARNING)
    if channels_last:
        weights_channels_last(network)
    bind(engine, network, optimizer, groups)
    if channels_last and cluster.world_size > 1:
        engine.allreduce_and_copy = Averaging()  # gradients are float32 in bf16 too
    return engine


def _groups(config: DictConfig, cluster: Cluster) -> list[tuple[int, int]]:
    """(images of this rank in a forward pass, size in pixels) of each resolution that the network sees."""
    crops = crops_from_config(config.crops, config.pipeline.backend, config.distill.crops)
    here = config.run.batch_size // cluster.world_size // config.engine.accumulation
    views = Counter(view.size for view in crops.views[: len(crops.views) - crops.teachers])
    return [(here * count, size) for size, count in views.items()]


def input_dtype(config: DictConfig) -> torch.dtype:
    """The dtype of crops: that of the network's first convolution."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.engine.precision]
