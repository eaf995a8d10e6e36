"""What settings require of each other. A rule is a function that raises ConfigError for a configuration that breaks it.

config/schema declares the range of each single setting; training/auto.py checks rules that depend on the images and the
processes.
"""

from __future__ import annotations

import importlib.util

from omegaconf import DictConfig, OmegaConf

from config.backbones import unknown_backbone
from config.errors import ConfigError
from config.groups import SPLIT, groups_of, sizes_of_crops


def check_rules(config: DictConfig) -> None:
    """Check a configuration whose types and ranges are right. Raises ConfigError for the first broken rule."""
    for rule in RULES:
        rule(config)


def _require(good: bool, config: DictConfig, key: str, expected: str) -> None:
    if not good:
        raise ConfigError(f"{key}={OmegaConf.select(config, key)}: expected {expected}")


# ---------------------------------------------------------------------- images
def each_path_has_a_weight(config: DictConfig) -> None:
    weights, paths = config.data.weights, config.data.path
    count = 0 if isinstance(paths, str) else len(paths)
    words = f"{count} numbers, one for each path of data.path" if count else "null for a data.path that is no list"
    _require(weights is None or len(weights) == count, config, "data.weights", words)


def clusters_are_of_each_image_once(config: DictConfig) -> None:
    clusters = config.method in ("deepclusterv2", "selav2")
    for key, usual in (("weights", None), ("balance", "none")):
        words = f"{'null' if usual is None else usual} with method={config.method}, which clusters each image once"
        _require(not clusters or config.data[key] == usual, config, f"data.{key}", words)


def mixtures_have_no_neighbors(config: DictConfig) -> None:
    mixed = config.data.weights is not None or config.data.balance != "none"
    words = "1 with data.weights or data.balance, whose images do not come in the order of the data"
    _require(not mixed or config.data.neighbors == 1, config, "data.neighbors", words)


# ---------------------------------------------------------------------- crops and codes
def one_crop_predicts_another(config: DictConfig) -> None:
    words = "two crops or more in all: one predicts the code of another"
    key = "crops.groups" if config.crops.groups else "crops.global.count"
    _require(_crops_of(config) >= 2, config, key, words)


def crops_of_one_size_follow_each_other(config: DictConfig) -> None:
    sizes = sizes_of_crops(config.crops) if config.crops.groups else []
    blocks = [size for size, before in zip(sizes, [None, *sizes], strict=False) if size != before]
    _require(len(blocks) == len(set(blocks)), config, "crops.groups", SPLIT)


def codes_come_from_different_crops(config: DictConfig) -> None:
    crops, assigning = _crops_of(config), list(config.swav.assigning)
    good = len(set(assigning)) == len(assigning) and all(0 <= crop < crops for crop in assigning)
    _require(good, config, "swav.assigning", f"different crops from 0 to {crops - 1}")


def loggers_are_installed(config: DictConfig) -> None:
    for name in config.run.loggers:
        if importlib.util.find_spec(name) is None and name != "csv":
            expected = f"the package {name}, which is not installed: .venv/bin/python -m pip install {name}"
            _require(False, config, "run.loggers", expected)


def _crops_of(config: DictConfig) -> int:
    return sum(group["count"] for group in groups_of(config.crops))


def dali_has_no_exact_color(config: DictConfig) -> None:
    good = config.pipeline.backend != "dali" or config.crops.jitter.exact is not True
    words = "auto or false with pipeline.backend=dali, which has affine color only"
    _require(good, config, "crops.jitter.exact", words)


def the_queue_starts_before_the_end(config: DictConfig) -> None:
    queue, epochs = config.swav.queue, config.run.epochs
    good = queue.length == 0 or queue.start_epoch == "auto" or queue.start_epoch < epochs
    _require(good, config, "swav.queue.start_epoch", f"less than run.epochs={epochs}, or swav.queue.length=0")


# ---------------------------------------------------------------------- backbone and teacher
def backbones_exist(config: DictConfig) -> None:
    for section in ("model", "distill"):
        if problem := unknown_backbone(name := config[section].backbone):
            raise ConfigError(f"{section}.backbone={name}: {problem}")


def the_teacher_slows_down(config: DictConfig) -> None:
    teacher = config.swav.teacher
    good = teacher.momentum <= teacher.final_momentum <= 1
    _require(good, config, "swav.teacher.final_momentum", f"from swav.teacher.momentum={teacher.momentum} to 1")


def the_teacher_needs_the_whole_network(config: DictConfig) -> None:
    good = not config.swav.teacher.momentum or config.engine.stage != 3
    words = "0 with engine.stage=3, where no process has the whole network to average"
    _require(good, config, "swav.teacher.momentum", words)


def distillation_has_a_teacher(config: DictConfig) -> None:
    distills = config.method == "distill"
    _require(distills == (config.distill.weights is not None), config, "distill.weights", (
        "a file with the teacher's weights, with method=distill" if distills else "null, or method=distill"
    ))  # fmt: skip
    words = "0 without method=distill, because a teacher alone sees these crops"
    _require(distills or config.distill.crops.count == 0, config, "distill.crops.count", words)
    momentum_words = "0 with method=distill, whose teacher does not move"
    _require(not (distills and config.swav.teacher.momentum), config, "swav.teacher.momentum", momentum_words)
    words = "auto or weights with method=distill, where the teacher's prototypes name the student's"
    _require(not distills or config.model.prototypes_from != "kmeans", config, "model.prototypes_from", words)


# ---------------------------------------------------------------------- weights to go on from
def the_backbone_trains_before_the_end(config: DictConfig) -> None:
    frozen, epochs = config.model.freeze_backbone_epochs, config.run.epochs
    good = frozen == "auto" or frozen < epochs
    _require(good, config, "model.freeze_backbone_epochs", f"less than run.epochs={epochs}")


def adapters_have_weights_to_adapt(config: DictConfig) -> None:
    model = config.model
    good = not model.lora.rank or model.weights is not None or model.options.get("pretrained")
    _require(good, config, "model.lora.rank", "0 without model.weights, which adapters adapt")


# ---------------------------------------------------------------------- optimizer
def the_warm_up_fits_into_the_run(config: DictConfig) -> None:
    warmup, epochs = config.optimizer.warmup_epochs, config.run.epochs
    _require(warmup == "auto" or warmup <= epochs, config, "optimizer.warmup_epochs", f"at most run.epochs={epochs}")


def the_learning_rate_falls(config: DictConfig) -> None:
    base, final = config.optimizer.base_lr, config.optimizer.final_lr
    good = "auto" in (base, final) or final <= base
    _require(good, config, "optimizer.final_lr", f"at most optimizer.base_lr={base}")


def a_learning_rate_to_scale_is_given(config: DictConfig) -> None:
    good = config.optimizer.scale_lr_from is None or config.optimizer.base_lr != "auto"
    _require(good, config, "optimizer.base_lr", "a number, which optimizer.scale_lr_from scales")


# ---------------------------------------------------------------------- engine
def offload_needs_zero(config: DictConfig) -> None:
    good = not (config.engine.offload and config.engine.stage == 0)
    _require(good, config, "engine.offload", "false at engine.stage=0: take 1, 2 or 3")


def cuda_graphs_replay_a_compiled_step(config: DictConfig) -> None:
    engine = config.engine
    words = "false without engine.compile=true and engine.accumulation=1, and at engine.stage=3, which moves parameters"
    good = not engine.cuda_graphs or (engine.compile and engine.accumulation == 1 and engine.stage != 3)
    _require(good, config, "engine.cuda_graphs", words)


def the_batch_splits_into_parts(config: DictConfig) -> None:
    batch = config.run.batch_size
    _require(batch % config.engine.accumulation == 0, config, "engine.accumulation", f"a divisor of {batch}")


RULES = (
    loggers_are_installed,
    backbones_exist,
    each_path_has_a_weight,
    clusters_are_of_each_image_once,
    mixtures_have_no_neighbors,
    one_crop_predicts_another,
    crops_of_one_size_follow_each_other,
    codes_come_from_different_crops,
    dali_has_no_exact_color,
    the_queue_starts_before_the_end,
    the_teacher_slows_down,
    the_teacher_needs_the_whole_network,
    distillation_has_a_teacher,
    the_backbone_trains_before_the_end,
    adapters_have_weights_to_adapt,
    the_warm_up_fits_into_the_run,
    the_learning_rate_falls,
    a_learning_rate_to_scale_is_given,
    offload_needs_zero,
    cuda_graphs_replay_a_compiled_step,
    the_batch_splits_into_parts,
)
