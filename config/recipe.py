"""A recipe becomes a checked configuration: defaults, then the recipe, then `key=value` arguments.

Every mistake is a ConfigError of one line that names the key, the value and the mend. No heavy import here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.cli import UserError

ROOT = Path(__file__).resolve().parent.parent  # of the repository
DEFAULTS = ROOT / "config" / "default.yaml"

# Keys whose default is not of the only type allowed.
ALSO: dict[str, tuple[type, ...]] = {
    "data.path": (str,),
    "data.test": (str,),
    "model.weights": (str,),
    "pipeline.threads": (int,),
    "model.prototypes": (int,),
    "model.heads": (int,),
    "crops.jitter.exact": (bool,),
    "swav.freeze_prototypes": (int,),
    "swav.queue.length": (int,),
    "swav.queue.start_epoch": (int,),
    "optimizer.base_lr": (int, float),
    "optimizer.final_lr": (int, float),
    "optimizer.scale_lr_from": (int,),
    "optimizer.warmup_epochs": (int, float),
    "evaluation.size": (int,),
    "engine.stage": (int,),
    "engine.sync_batch_norm": (int,),
    "engine.bucket_size": (int,),
}
METHODS = ("swav", "deepclusterv2", "selav2")
FREE = ("model.options", "engine.deepspeed")  # any keys below these: the backbone and DeepSpeed check them


class ConfigError(UserError):
    """A user's mistake in one line."""


def load_config(arguments: Sequence[str]) -> DictConfig:
    """The checked configuration of `[recipe.yaml, key=value, ...]`. Raises ConfigError."""
    config = OmegaConf.load(DEFAULTS)
    assert isinstance(config, DictConfig)
    defaults = config.copy()
    recipes = [a for a in arguments if "=" not in a]
    if len(recipes) != 1:
        raise ConfigError(f"give one recipe and key=value settings, not {' '.join(arguments) or 'nothing'!r}")
    config = _merge(config, _read(recipes[0]), defaults, recipes[0])
    # Another backbone drops the options of the one before, so it goes first.
    for argument in sorted(arguments, key=lambda a: not a.startswith("model.backbone=")):
        if "=" in argument:
            try:
                override = OmegaConf.from_dotlist([argument])
            except (OmegaConfBaseException, YAMLError, ValueError) as error:
                raise ConfigError(f"{argument}: not to be read ({_first_line(error)})") from None
            config = _merge(config, override, defaults, argument)
    for key in sorted(OmegaConf.missing_keys(defaults)):
        if OmegaConf.is_missing(*_parent(config, key)) or not OmegaConf.select(config, key):
            raise ConfigError(f"{key} is not set; give it as {key}=...")
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from None
    _check_types(config, defaults)
    check_values(config)
    given = [argument.partition("=")[0] for argument in arguments]
    if (
        "data.path" in given
        and "run.directory" not in given
        and _read(recipes[0]).get("data", {}).get("path", "???") != "???"
    ):
        # other images than the recipe's own are another run
        config.run.directory += f"-{Path(config.data.path).resolve().stem}"
    return config


def _read(recipe: str) -> DictConfig:
    path = Path(recipe)
    if not path.is_file():
        known = sorted(str(p.relative_to(ROOT)) for p in DEFAULTS.parent.rglob("*.yaml") if p != DEFAULTS)
        raise ConfigError(f"{recipe}: no such recipe; there are {', '.join(known)}")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # PyYAML's and OmegaConf's many kinds: all are the recipe's fault
        raise ConfigError(f"{recipe}: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{recipe}: a recipe is a mapping of sections")
    return loaded


def _merge(config: DictConfig, override: DictConfig, defaults: DictConfig, source: str) -> DictConfig:
    for key in _leaves(override):
        _check_known(key, defaults, source)
    merged = OmegaConf.merge(config, override)
    assert isinstance(merged, DictConfig)
    if merged.model.backbone != config.model.backbone:
        merged.model.options = OmegaConf.select(override, "model.options", default={})
    return merged


def _leaves(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of all values that are not themselves sections."""
    if not isinstance(node, DictConfig) or not len(node):
        return [prefix] if prefix else []
    return [
        leaf for key in map(str, node) for leaf in _leaves(node._get_node(key), f"{prefix}.{key}" if prefix else key)
    ]


def _parent(config: DictConfig, key: str) -> tuple[Any, str]:
    section, _, name = key.rpartition(".")
    return OmegaConf.select(config, section), name


def _free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE)


def _check_known(key: str, defaults: DictConfig, source: str) -> None:
    if _free(key):
        return
    known = _leaves(defaults)
    if key in known:
        return
    if any(leaf.startswith(key + ".") for leaf in known):
        raise ConfigError(f"{source}: {key} is a section, not a value; its keys are {_children(key, known)}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise ConfigError(f"{source}: unknown key {key}; the nearest is {near[0]}")


def _children(key: str, known: list[str]) -> str:
    return ", ".join(leaf for leaf in known if leaf.startswith(key + "."))


def _check_types(config: DictConfig, defaults: DictConfig) -> None:
    """Every value has its default's type, or one of `ALSO`. Raises ConfigError."""
    for key in _leaves(defaults):
        default, value = OmegaConf.select(defaults, key, throw_on_missing=False), OmegaConf.select(config, key)
        if _free(key):
            if not isinstance(value, DictConfig):
                raise ConfigError(f"{key}={value}: expected a mapping")
        elif value != default and not _is_a(value, *ALSO.get(key, ())):
            expected = _mismatch(key, default, value)
            if expected:
                raise ConfigError(f"{key}={value}: expected {expected}")


def _mismatch(key: str, default: Any, value: Any) -> str | None:
    """What was expected in place of `value`; None if it will do."""
    if isinstance(default, ListConfig):
        kind = int if isinstance(default[0], int) else (int, float)
        any_length = key == "swav.assigning"
        good = isinstance(value, ListConfig) and all(_is_a(item, kind) for item in value)
        if good and (any_length or len(value) == len(default)):
            return None
        return f"a list of {'integers' if any_length else f'{len(default)} numbers'}, e.g. {list(default)}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, float):
        return None if _is_a(value, (int, float)) else "a number"
    if isinstance(default, int):
        return None if _is_a(value, int) else "an integer"
    if key in ALSO and default == "auto":
        kinds: dict[Any, str] = {(int,): "auto or an integer", (bool,): "auto, true or false"}
        return kinds.get(ALSO[key], "auto or a number")
    return None if isinstance(value, str) else "a text"


def _is_a(value: Any, *kinds: Any) -> bool:
    """isinstance, but true and false are no numbers."""
    return bool in kinds if isinstance(value, bool) else any(isinstance(value, kind) for kind in kinds)


# ---------------------------------------------------------------------- values that make sense
def check_values(config: DictConfig) -> None:
    """Refuse what cannot work, before anything starts. Raises ConfigError."""

    def require(good: bool, key: str, expected: str) -> None:
        if not good:
            raise ConfigError(f"{key}={OmegaConf.select(config, key)}: expected {expected}")

    def require_number(key: str, low: float, expected: str, strict: bool = False) -> None:
        value = OmegaConf.select(config, key)
        require(value == "auto" or (value > low if strict else value >= low), key, expected)

    for key in _leaves(config):
        value = OmegaConf.select(config, key)
        numbers = list(value) if isinstance(value, ListConfig) else [value]
        require(all(not isinstance(n, float) or math.isfinite(n) for n in numbers), key, "finite numbers")
    for key in ("run.epochs", "run.batch_size", "run.log_every", "checkpoint.keep", "swav.iterations", "perf.steps"):
        require_number(key, 1, "at least 1")
    for key in ("evaluation.k", "evaluation.batch_size", "evaluation.size", "pipeline.threads"):
        require_number(key, 1, "at least 1")
    require_number("model.prototypes", 2, "at least 2")
    require_number("model.heads", 1, "at least 1")
    threads = config.pipeline.threads
    require(threads == "auto" or threads <= 1024, "pipeline.threads", "at most 1024 threads a process")
    queue = config.swav.queue
    never = queue.length != 0 and queue.start_epoch != "auto" and queue.start_epoch >= config.run.epochs
    require(not never, "swav.queue.start_epoch", f"less than run.epochs={config.run.epochs}, or swav.queue.length=0")
    for key in ("checkpoint.keep_epochs", "evaluation.every", "evaluation.max_train"):
        require_number(key, 0, "0 or more")
    for key in ("launch.restarts", "launch.backoff", "perf.skip"):
        require_number(key, 0, "0 or more")
    require_number("launch.timeout", 1, "at least 1 second")
    for key in ("data.workers", "model.hidden_dim", "swav.freeze_prototypes", "swav.queue.length"):
        require_number(key, 0, "0 or more")
    for key in ("swav.queue.start_epoch", "optimizer.warmup_epochs", "optimizer.start_lr", "optimizer.final_lr"):
        require_number(key, 0, "0 or more")
    require_number("optimizer.weight_decay", 0, "0 or more")
    require_number("swav.epsilon", 0.002, "at least 0.002: below, codes leave the range of numbers")
    for key in ("swav.temperature", "optimizer.base_lr", "evaluation.temperature"):
        require_number(key, 0, "more than 0", strict=True)
    require_number("optimizer.trust_coefficient", 0, "more than 0", strict=True)
    require_number("model.embedding_dim", 1, "at least 1")
    require(0 <= config.run.seed < 2**32, "run.seed", "0 to 4294967295")
    require(0 <= config.optimizer.momentum < 1, "optimizer.momentum", "0 or more and less than 1")
    first, final = config.swav.teacher.momentum, config.swav.teacher.final_momentum
    require(0 <= first < 1, "swav.teacher.momentum", "0 or more and less than 1")
    require(first <= final <= 1, "swav.teacher.final_momentum", f"from swav.teacher.momentum={first} to 1")
    whole = not first or config.engine.stage != 3
    require(whole, "swav.teacher.momentum", "0 with engine.stage=3, where no process has the whole network to average")
    require(0 <= config.data.max_bad_fraction <= 1, "data.max_bad_fraction", "a share from 0 to 1")
    require(0 < config.evaluation.share <= 1, "evaluation.share", "a share above 0, at most 1")
    require(config.method in METHODS, "method", f"{', '.join(METHODS[:-1])} or {METHODS[-1]}")
    require(config.pipeline.backend in ("dali", "ffcv", "torchvision"), "pipeline.backend", "dali, ffcv or torchvision")
    can = config.pipeline.backend != "dali" or config.crops.jitter.exact is not True
    require(can, "crops.jitter.exact", "auto or false with pipeline.backend=dali, which has affine color only")
    require(config.pipeline.device in ("auto", "cpu", "gpu"), "pipeline.device", "auto, cpu or gpu")
    parse_every(config.checkpoint.every)
    _check_crops(config, require)
    _check_optimizer_and_engine(config, require, require_number)


def parse_every(text: str) -> tuple[int, str]:
    """'10 minutes' -> (10, "minute"); 'never' -> (0, "epoch"). Raises ConfigError."""
    found = re.fullmatch(r"(\d+) *(epoch|step|minute)s?", text)
    if text != "never" and (not found or int(found[1]) < 1):
        raise ConfigError(f"checkpoint.every={text}: expected such as '1 epoch', '500 steps', '10 minutes', or never")
    return (int(found[1]), found[2]) if found else (0, "epoch")


def _check_optimizer_and_engine(config: DictConfig, require: Any, require_number: Any) -> None:
    optimizer, engine = config.optimizer, config.engine
    require(optimizer.name in ("lars", "adamw"), "optimizer.name", "lars or adamw")
    require(all(0 <= beta < 1 for beta in optimizer.betas), "optimizer.betas", "two numbers from 0 to below 1")
    require(0 < optimizer.layer_decay <= 1, "optimizer.layer_decay", "above 0, at most 1")
    adamw = optimizer.name == "adamw"
    require(adamw or optimizer.layer_decay == 1, "optimizer.layer_decay", "1 with optimizer.name=lars")
    warmup, base, final = optimizer.warmup_epochs, optimizer.base_lr, optimizer.final_lr
    epochs = config.run.epochs
    require(warmup == "auto" or warmup <= epochs, "optimizer.warmup_epochs", f"at most {epochs} epochs")
    require("auto" in (base, final) or final <= base, "optimizer.final_lr", f"at most optimizer.base_lr={base}")
    scale = optimizer.scale_lr_from
    require(scale is None or (_is_a(scale, int) and scale >= 1), "optimizer.scale_lr_from", "null or images a step")
    require(scale is None or base != "auto", "optimizer.base_lr", "a number, which optimizer.scale_lr_from scales")
    require(engine.stage in ("auto", 0, 1, 2, 3), "engine.stage", "auto, 0, 1, 2 or 3")
    require(engine.precision in ("auto", "fp32", "bf16", "fp16"), "engine.precision", "auto, fp32, bf16 or fp16")
    require_number("engine.accumulation", 1, "at least 1")
    require_number("engine.max_skipped_steps", 1, "at least 1")
    require_number("engine.bucket_size", 1, "auto or at least 1")
    require_number("engine.sync_batch_norm", 0, "auto, or 0 or more processes")
    require_number("engine.clipping", 0, "0 or more")
    require(not (engine.offload and engine.stage == 0), "engine.offload", "false at engine.stage=0: take 1, 2 or 3")
    parts = engine.accumulation
    require(config.run.batch_size % parts == 0, "engine.accumulation", f"a divisor of {config.run.batch_size}")


def _check_crops(config: DictConfig, require: Any) -> None:
    for name in ("global", "local"):
        group, key = config.crops[name], f"crops.{name}"
        least = 1 if name == "global" else 0
        require(least <= group["count"] <= 64, f"{key}.count", f"{least} to 64 crops")
        require(4 <= group["size"] <= 4096, f"{key}.size", "4 to 4096 pixels")
        low, high = group["scale"]
        require(0 < low <= high <= 1, f"{key}.scale", "[low, high] with 0 < low <= high <= 1")
    views = config.crops["global"]["count"] + config.crops["local"]["count"]
    require(views >= 2, "crops.global.count", "two crops or more in all: one predicts the code of another")
    assigning = list(config.swav.assigning)
    require(
        assigning and len(set(assigning)) == len(assigning) and all(0 <= a < views for a in assigning),
        "swav.assigning",
        f"different crops from 0 to {views - 1}",
    )
    for key in ("crops.flip", "crops.grayscale", "crops.jitter.probability", "crops.blur.probability"):
        require(0 <= OmegaConf.select(config, key) <= 1, key, "a probability from 0 to 1")
    for key in ("brightness", "contrast", "saturation"):
        require(config.crops.jitter[key] >= 0, f"crops.jitter.{key}", "0 or more")
    require(0 <= config.crops.jitter.hue <= 0.5, "crops.jitter.hue", "0 to 0.5 turns")
    low, high = config.crops.ratio
    require(0 < low <= high, "crops.ratio", "[low, high] with 0 < low <= high")
    low, high = config.crops.blur.sigma
    require(0 < low <= high <= 64, "crops.blur.sigma", "[low, high] with 0 < low <= high <= 64, in pixels")
    require(all(s > 0 for s in config.crops.std), "crops.std", "numbers above 0")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
