"""`auto` settings: chosen from the dataset and the batch, and printed with the reason.

The anchors come from the paper: learning rate 0.6 at 256 images a step and 4.8 at 4096 (not linear in between),
3,000 prototypes for ImageNet's 1.28 million images, a queue of 3,840 only for small batches.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.own_code import own_function
from config.groups import sizes_of_crops
from config.recipe import ConfigError, own_functions
from config.schema.method import LARGEST
from config.schema.settings import settings
from model.libraries.names import is_own_code
from pipeline.crops import exact_color, usual_backend
from pipeline.dataset.table import SampleTable
from pipeline.fitting import fit_to_pixels, shown
from training.distributed import Cluster

IMAGES_A_PROTOTYPE = 427  # 1,281,167 / 3,000
MOST_PROTOTYPES, LONGEST_QUEUE = 3000, 3840  # the paper's
LARGE = 2 * 10**6  # parameters of a backbone whose steps bfloat16 makes faster on a CPU (docs/performance.md)
ADAPT_STEPS = 100  # of 0.9 ** 100, 3e-5 of batch norm's old statistics are left
HW_DECODER_LOAD = 0.65  # DALI's default
BACKBONE_SCALE = 0.3  # of the learning rate, for a backbone that has learned before
FEWEST_WATCHED, MOST_WATCHED = 256, 4096
CLUSTERING = ("deepclusterv2", "selav2")  # methods with targets for an epoch
QUEUE_BELOW = 1024  # images per step; with more, the paper trains without a queue (2560 of RN50w4: with, 4096: without)


def check_before_data(config: DictConfig, cluster: Cluster, begun_with: dict[str, Any] | None = None) -> None:
    """Raise ConfigError for what can be known without images: a batch that does not split over the processes, an engine
    that the device cannot run, functions that the user's modules lack, options that the backbone does not take, and
    keys that DeepSpeed does not take. Changes nothing; `fit` and the builders check the same."""
    for key, name in own_functions(config).items():
        try:
            own_function(name, f"{key}={name}")
        except ValueError as error:
            raise ConfigError(str(error)) from None
    _check_batch(config, cluster.world_size)
    _check_device(config, cluster)
    _check_backbone(config.model)
    if config.engine.deepspeed:
        trial = copy.deepcopy(config)
        if begun_with is not None:
            _keep(trial, begun_with)
        _fit_engine(trial, lambda key, value, why: _choose(trial, key, value), cluster)


def _check_backbone(model: DictConfig) -> None:
    """Build a library's backbone without memory for its weights; if that fails, with memory too, which some need."""
    if is_own_code(model.backbone):
        return
    from training.build import backbone_of, backbone_parameters, without_download

    try:
        backbone_parameters(model)
    except Exception:  # of any builder
        backbone_of(without_download(model))


def _check_batch(config: DictConfig, world_size: int) -> None:
    batch, parts = config.run.batch_size, config.engine.accumulation
    if batch % world_size:
        raise ConfigError(f"run.batch_size={batch} does not split evenly over {world_size} processes")
    if batch % (world_size * parts):
        raise ConfigError(
            f"engine.accumulation={parts}: run.batch_size={batch} does not split over {world_size} processes times that"
        )
    if batch // world_size // parts < 2:
        raise ConfigError(
            f"run.batch_size={batch}: batch norm needs 2 images a process or more ({world_size} processes"
            f"{f', engine.accumulation={parts}' if parts > 1 else ''})"
        )


def fit(
    config: DictConfig,
    images: int,
    cluster: Cluster,
    begun_with: dict[str, Any] | None = None,
    table: SampleTable | None = None,
) -> list[str]:
    """Replace every `auto` that depends on data or batch, in place. Returns one line for each choice.

    images: usable images of the training set. begun_with: settings of the run that is resumed, chosen at its start.
    table: of the training set; without one its images are pictures in 8-bit RGB.
    Raises ConfigError where dataset, batch and processes do not fit.
    """
    choices = [] if begun_with is None else _keep(config, begun_with)
    batch, epochs, world_size = config.run.batch_size, config.run.epochs, cluster.world_size
    _check_batch(config, world_size)
    if batch > images:
        raise ConfigError(f"run.batch_size={batch} is more than the {images} images of data.path; lower it")
    steps = images // batch

    def choose(key: str, value: float | int | str | bool, why: str) -> None:
        if _choose(config, key, value):
            choices.append(f"{key}={shown(value)}  ({why}; override with {key}=...)")

    choices += fit_to_pixels(config, table, cluster.main)
    _fit_machine(config, choose, cluster)
    _fit_engine(config, choose, cluster)
    prototypes = min(MOST_PROTOTYPES, max(30, round(images / IMAGES_A_PROTOTYPE, -1)))
    if config.method == "distill":
        from training.distillation.teacher import fit_teacher

        fit_teacher(config, choose)
    choose(
        "model.prototypes", int(prototypes), f"{images:,} images, about {IMAGES_A_PROTOTYPE} for each as in the paper"
    )
    reason = f"{config.method} as published" if config.method in CLUSTERING else "one is enough for codes"
    choose("model.heads", heads_of(config.method), reason)
    _fit_method(config, choose, steps * batch)
    if config.optimizer.name != "lars":
        choose(
            "optimizer.base_lr", float(f"{5e-4 * batch / 256:.3g}"), f"{batch} images a step, 5e-4 for 256 as for ViTs"
        )
    _scale_learning_rates(config.optimizer, batch, choices)
    rate = min(4.8, 0.6 * (batch / 256) ** 0.75)
    choose("optimizer.base_lr", float(f"{rate:.3g}"), f"{batch} images a step; the paper has 0.6 at 256, 4.8 at 4096")
    choose("optimizer.final_lr", float(f"{config.optimizer.base_lr / 1000:.3g}"), "a thousandth of base_lr")
    long = batch >= QUEUE_BELOW or config.optimizer.name != "lars"
    warmup = round(min(10.0, epochs / 10), 2) if long else 0
    choose("optimizer.warmup_epochs", warmup, f"{batch} images a step")
    if config.optimizer.warmup_epochs > epochs:
        raise ConfigError(f"run.epochs={epochs} is less than optimizer.warmup_epochs={config.optimizer.warmup_epochs}")
    choose(
        "swav.freeze_prototypes", min(steps if batch >= QUEUE_BELOW else 5005, epochs * steps // 20), "an epoch or 5 %"
    )
    _fit_start(config, choices, steps, begun_with is None)
    _fit_queue(config, choose, batch, epochs, images, world_size)
    watched = min(MOST_WATCHED, max(FEWEST_WATCHED, images // 128))
    choose("evaluation.watched", watched, "one in 128 images, for report.html and measures without labels")
    choose("evaluation.size", sizes_of_crops(config.crops)[0], "the first crops' size, in pixels")
    return choices


def _keep(config: DictConfig, begun_with: dict[str, Any]) -> list[str]:
    """Settings at `auto` that must not change on resume take the value with which the run has begun, in place."""
    before, choices = OmegaConf.create(begun_with), list[str]()
    for key, setting in settings().items():
        value = OmegaConf.select(before, key)
        if setting.keeps_auto and OmegaConf.select(config, key) == "auto" and value not in (None, "auto"):
            OmegaConf.update(config, key, value)
            choices.append(f"{key}={shown(value)}  (the run has begun with it)")
    return choices


def _scale_learning_rates(optimizer: DictConfig, batch: int, choices: list[str]) -> None:
    """Scale the recipe's learning rates in proportion from `scale_lr_from` to `batch` images per step, in place."""
    given = optimizer.scale_lr_from
    if given in (None, batch):
        return
    for name in ("base_lr", "final_lr", "start_lr"):
        if optimizer[name] != "auto":
            optimizer[name] = float(optimizer[name] * batch / given)
            if optimizer[name] > LARGEST:
                raise ConfigError(f"optimizer.scale_lr_from={given}: optimizer.{name}={optimizer[name]:g} is too large")
    optimizer.scale_lr_from = batch  # so that fitting these settings again changes nothing
    choices.append(
        f"optimizer.base_lr={optimizer.base_lr:g}  ({batch} images a step, scaled in proportion from {given})"
    )


def heads_of(method: str) -> int:
    """Sets of prototypes if the recipe does not set model.heads."""
    return 3 if method in CLUSTERING else 1


def _fit_method(config: DictConfig, choose: Callable[..., None], samples: int) -> None:
    """Check and choose for the methods that cluster before each epoch. samples: images of an epoch."""
    method, swav = config.method, config.swav
    if method == "distill":
        choose("swav.freeze_prototypes", 0, "the teacher's codes do not follow the student's prototypes")
        choose("swav.queue.start_epoch", 0, "the teacher's embeddings do not change")
    if method not in CLUSTERING:
        return
    if samples < config.model.prototypes:
        raise ConfigError(
            f"model.prototypes={config.model.prototypes}: {method} clusters an epoch's {samples} images into as many; "
            "lower it"
        )
    choose("swav.queue.length", 0, f"{method} has none: it clusters all images")
    if swav.queue.length:
        raise ConfigError(f"swav.queue.length={swav.queue.length}: method={method} has no queue; set it to 0")
    if swav.hard:
        raise ConfigError(f"swav.hard=true: it is for method=swav, the targets of {method} are hard anyway")
    if swav.teacher.momentum:
        raise ConfigError(
            f"swav.teacher.momentum={swav.teacher.momentum}: it is for method=swav, {method} has no codes; set it to 0"
        )
    if method == "deepclusterv2":
        choose("swav.freeze_prototypes", 0, "k-means sets the prototypes, no gradient does")
        if swav.freeze_prototypes:
            raise ConfigError(
                f"swav.freeze_prototypes={swav.freeze_prototypes}: with method={method} k-means alone moves the "
                "prototypes; leave it out"
            )


def _fit_queue(
    config: DictConfig, choose: Callable[..., None], batch: int, epochs: int, images: int, world_size: int
) -> None:
    queue = config.swav.queue
    if batch >= QUEUE_BELOW:
        choose("swav.queue.length", 0, f"{batch} images a step need none")
    else:
        length = min(LONGEST_QUEUE, images // 4) // batch * batch
        few = f"{batch} images a step are few for {config.model.prototypes} prototypes"
        choose("swav.queue.length", length, few if length else f"{images} images are too few for one")
    if not queue.length:
        queue.start_epoch = 0
        return
    if config.model.prototypes_from != "weights" or config.model.adapt_steps:
        choose("swav.queue.start_epoch", 0, "the run's first pass fills it")
    choose("swav.queue.start_epoch", math.ceil(0.075 * epochs), "15 of 200 epochs in the paper")
    if queue.length < batch:
        raise ConfigError(
            f"swav.queue.length={queue.length} is shorter than run.batch_size={batch}; lengthen it, or 0 for no queue"
        )
    if queue.length % world_size:
        raise ConfigError(f"swav.queue.length={queue.length} does not split evenly over {world_size} processes")
    if queue.length % batch:
        raise ConfigError(f"swav.queue.length={queue.length} is not a multiple of run.batch_size={batch}")


def _fit_start(config: DictConfig, choices: list[str], steps: int, new: bool) -> None:
    """Choose how a run goes on from model.weights, in one line; without weights say nothing and change nothing.

    steps: of an epoch. new: not a resumed run, whose settings are older than these keys if it has none. For a new run
    from weights, model.prototypes_from may stay at auto: training.build.starting_network looks into the file.
    """
    given, epochs, model = new and config.model.weights is not None, config.run.epochs, config.model
    enough = steps * config.run.batch_size >= model.prototypes
    if model.prototypes_from == "auto" and not (given and enough and config.method == "swav"):
        model.prototypes_from = "weights"
    if model.prototypes_from == "kmeans" and config.method == "deepclusterv2":
        raise ConfigError("model.prototypes_from=kmeans: deepclusterv2 does so before every epoch; leave it out")
    if model.prototypes_from == "kmeans" and not enough:
        raise ConfigError(f"model.prototypes_from=kmeans: an epoch has fewer images than {model.prototypes} prototypes")
    values: dict[str, int | float] = {
        "model.adapt_steps": min(ADAPT_STEPS, steps) if given and config.method == "swav" else 0,
        "model.freeze_backbone_epochs": min(max(1, epochs // 20), epochs - 1) if given else 0,
        "optimizer.backbone_lr_scale": BACKBONE_SCALE if given else 1,
    }
    chosen = {key: value for key, value in values.items() if OmegaConf.select(config, key) == "auto"}
    for key, value in chosen.items():
        OmegaConf.update(config, key, value)
    if given and chosen:
        words = ", ".join(f"{key}={shown(value)}" for key, value in chosen.items())
        choices.append(f"{words}  (the run goes on from model.weights; override with KEY=...)")


def _choose(config: DictConfig, key: str, value: float | int | str | bool) -> bool:
    """Replace `auto` by the value; whether it stood there."""
    chosen = OmegaConf.select(config, key) == "auto"
    if chosen:
        OmegaConf.update(config, key, value)
    return chosen


def _check_device(config: DictConfig, cluster: Cluster) -> None:
    if cluster.device().type == "cuda":
        return
    if config.engine.precision == "fp16":
        raise ConfigError("engine.precision=fp16 needs a GPU, and none is visible; take fp32 or bf16")
    if config.engine.cuda_graphs:
        raise ConfigError("engine.cuda_graphs=true needs a GPU, and none is visible; leave it out")


def _fit_engine(config: DictConfig, choose: Callable[..., object], cluster: Cluster) -> None:
    engine, on_gpu, world_size = config.engine, cluster.device().type == "cuda", cluster.world_size
    _check_device(config, cluster)
    if engine.precision == "auto":
        bf16, reason = _bf16_pays(config, on_gpu)
        choose("engine.precision", "bf16" if bf16 else "fp32", reason)
    if engine.offload or (on_gpu and world_size > 1):
        choose("engine.stage", 1, "what DDP does, with communication during backward")
    else:
        choose("engine.stage", 0, "one process, or no GPU")
    if on_gpu and world_size > 1:
        choose("engine.sync_batch_norm", min(8, world_size), "as the paper's code does")
    else:
        choose("engine.sync_batch_norm", 1, "one process, or no GPU")
    if engine.deepspeed:  # checked before a process connects
        from training.deepspeed_engine import deepspeed_config

        deepspeed_config(config, world_size, cluster.device().type, parameters=0)


def _bf16_pays(config: DictConfig, on_gpu: bool) -> tuple[bool, str]:
    """Whether bfloat16 makes steps faster on this device, and why."""
    import torch

    if on_gpu:
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return has, "a GPU that has it" if has else "a GPU without bf16"
    if not {"avx512_bf16", "amx_bf16"} & {name for name, has in torch.cpu.get_capabilities().items() if has}:
        return False, "a CPU without bf16"
    from training.build import backbone_parameters

    try:
        large = backbone_parameters(config.model) >= LARGE
    except Exception:  # of any builder, a user's too; the network is built later, and then it is said
        large = False
    size = f"{LARGE // 10**6} million parameters"
    return large, f"a CPU that has it, {f'and {size} or more' if large else f'but fewer than {size}'}"


def _fit_machine(config: DictConfig, choose: Callable[..., None], cluster: Cluster) -> None:
    """Choose how color is computed, where crops are made, and the number of threads."""
    on_gpu = cluster.device().type == "cuda"
    if config.pipeline.backend == "auto":  # a run then times others: training/fastest_loader.py
        config.pipeline.backend = usual_backend(on_gpu)
    if config.pipeline.hw_decoder_load == "auto":
        config.pipeline.hw_decoder_load = HW_DECODER_LOAD
    backend = config.pipeline.backend
    if config.pipeline.device == "gpu" and not on_gpu:
        raise ConfigError("pipeline.device=gpu, but no GPU is visible; use pipeline.device=cpu or auto")
    exact = exact_color(config.crops.jitter.exact, backend)
    choose("crops.jitter.exact", exact, f"{backend} {'can' if exact else 'has affine color only'}")
    if on_gpu:
        can = backend in ("dali", "ffcv")
        choose("pipeline.device", "gpu" if can else "cpu", f"{backend} {'can' if can else 'has the CPU only'}")
    else:
        choose("pipeline.device", "cpu", "no GPU is visible")
    cores, processes = len(os.sched_getaffinity(0)), cluster.local_world_size
    threads = min(16, max(1, cores // processes))
    choose("pipeline.threads", threads, f"{cores} cores for {processes} process{'es' if processes > 1 else ''} here")
