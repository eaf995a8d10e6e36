"""A recipe becomes a checked configuration: defaults, then the recipe, then `key=value` arguments.

config/schema declares the settings, config/rules.py what they require of each other. Every mistake is a ConfigError of
one line that names the key, the value and what is expected. Nothing heavy is imported, pydantic only to load and check.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import ScalarEvent, YAMLError, parse

from common.own_code import FUNCTION, check_module
from common.paths import ROOT
from common.versions import version
from config.backbones import LIBRARIES, missing
from config.errors import ConfigError
from config.rules import check_rules

if TYPE_CHECKING:
    from config.schema.setting import Setting

__all__ = [
    "DEFAULTS",
    "ROOT",
    "ConfigError",
    "answered",
    "check_given",
    "default_config",
    "load_config",
    "own_functions",
]

DEFAULTS = ROOT / "config" / "default.yaml"  # written by `make default-yaml`, for people
MISREAD = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # octal and base 60 in YAML 1.1


def default_config() -> DictConfig:
    """Every setting at its default; data.path, which has none, is "???"."""
    return deepcopy(_defaults())  # which takes half as long as making one


@cache
def _defaults() -> DictConfig:
    from config.schema.settings import defaults

    return OmegaConf.create(defaults())


def load_config(arguments: Sequence[str]) -> DictConfig:
    """The checked configuration of `[recipe.yaml, key=value, ...]`. Raises ConfigError."""
    from config.schema.check import check_types_and_ranges
    from config.schema.settings import settings

    config, known = default_config(), settings()
    recipes = [a for a in arguments if not _is_setting(a)]
    if len(recipes) != 1:
        cut = len(recipes) > 1 and not all(recipe.endswith(".yaml") for recipe in recipes)
        hint = "; quote a value that has blanks: \"data.path='/my images'\"" if cut else ""
        raise ConfigError(f"give one recipe and key=value settings, not {' '.join(arguments) or 'nothing'!r}{hint}")
    recipe = _read(recipes[0])
    _merge(config, recipe, known, recipes[0])
    # Another backbone drops the options of the previous one, so its argument goes first.
    for argument in sorted(arguments, key=lambda a: not a.startswith(("model.backbone=", "distill.backbone="))):
        if _is_setting(argument):
            try:
                override = _override(argument, known)
            except (OmegaConfBaseException, YAMLError, ValueError) as error:
                raise ConfigError(f"{argument}: not to be read ({_first_line(error)})") from None
            _merge(config, override, known, argument)
    if "${" in str(OmegaConf.to_container(config)):
        _check_references(config)
        OmegaConf.resolve(config)
        _check_references(config)  # a `${` that was escaped would be a reference again
    for key, setting in known.items():
        if setting.required and not OmegaConf.select(config, key):
            raise ConfigError(f"{key} is not set; give it as {key}=...")
    values: Any = OmegaConf.to_container(config)
    check_types_and_ranges(values)
    for key in (key for key, setting in known.items() if setting.is_path):
        if (path := OmegaConf.select(config, key)) is not None:  # the shell does not, after `key=`
            expanded = os.path.expanduser(path) if isinstance(path, str) else [*map(os.path.expanduser, path)]
            OmegaConf.update(config, key, expanded)
    given = [argument.partition("=")[0] for argument in arguments]
    idle = next((each for each in arguments if each.startswith(("crops.local.", "crops.global.count="))), "")
    if idle and config.crops.groups:
        raise ConfigError(f"{idle}: means nothing beside crops.groups; set it in a group, or crops.groups=[]")
    check_rules(config)
    if "data.path" in given and "run.directory" not in given and recipe.get("data", {}).get("path", "???") != "???":
        # Other images than the recipe's are another run.
        config.run.directory += "".join(f"-{Path(path).resolve().stem}" for path in paths_of(config.data))
    return config


def check_given(config: DictConfig) -> None:
    """Raise ConfigError for files of weights, packages and the user's modules that are not there. Nothing is imported.

    A run that has begun needs no weights; their files may be gone.
    """
    begun = any(Path(config.run.directory, "checkpoints").glob("step-*"))
    for section in ("model", "distill"):
        name, path = config[section].backbone, config[section].weights
        if path is not None and not begun and not Path(path).exists():
            raise ConfigError(f"{section}.weights={path}: no such file or folder")
        if str(name).startswith("transformers:") and (needs := missing("transformers")):
            raise ConfigError(f"{section}.backbone={name} {needs}")
    if config.model.lora.rank and (needs := missing("peft")):
        raise ConfigError(f"model.lora.rank={config.model.lora.rank} {needs}")
    for key, name in own_functions(config).items():
        try:
            check_module(name, f"{key}={name}")
        except ValueError as error:
            raise ConfigError(str(error)) from None


def own_functions(config: DictConfig) -> dict[str, str]:
    """The settings that name a function of the user's, module:function, with their values."""
    named = {"crops.custom": config.crops.custom}
    named |= {f"crops.groups[{index}].custom": group.get("custom") for index, group in enumerate(config.crops.groups)}
    named |= {f"{section}.backbone": config[section].backbone for section in ("model", "distill")}
    return {
        key: name
        for key, name in named.items()
        if FUNCTION.fullmatch(str(name)) and str(name).partition(":")[0] not in LIBRARIES
    }


def answered(arguments: Sequence[str], about: str | None) -> bool:
    """Whether the arguments ask for the version or for help (of settings, else `about`), which is then printed.

    Raises ConfigError for settings that do not exist.
    """
    if "--version" in arguments:
        print(f"swave {version()}")
    elif {"-h", "--help"} & set(arguments):
        print(_settings_help(arguments) or about)
    else:
        return False
    return True


def _settings_help(arguments: Sequence[str]) -> str:
    """Help for the settings and sections named after --help or -h; empty if there are no names. Raises ConfigError."""
    flag = next(index for index, argument in enumerate(arguments) if argument in ("-h", "--help"))
    names = [argument.partition("=")[0] for argument in arguments[flag + 1 :] if not argument.endswith(".yaml")]
    if not names:
        return ""
    from config.schema.render import help_text

    return help_text(names)


def _read(recipe: str) -> DictConfig:
    path = Path(recipe).expanduser()
    if not path.is_file():
        known = sorted(str(p.relative_to(ROOT)) for p in DEFAULTS.parent.rglob("*.yaml") if p != DEFAULTS)
        near = difflib.get_close_matches(recipe, known, n=1, cutoff=0.0)[0]
        shown = near if Path(near).is_file() else ROOT / near  # this may be another folder
        raise ConfigError(f"{recipe}: no such recipe; the nearest of the {len(known)} below config/ is {shown}")
    try:
        loaded = OmegaConf.load(path)
        _check_numbers(path.read_text("utf-8"))
    except Exception as error:  # of many kinds in PyYAML and OmegaConf; each is a mistake in the recipe
        raise ConfigError(f"{recipe}: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{recipe}: a recipe is a mapping of sections")
    return loaded


def _check_numbers(text: str) -> None:
    """Raises ValueError for a number that YAML reads in another base than 10: 010 is 8, and 1:30 is 90."""
    for event in parse(text):
        if isinstance(event, ScalarEvent) and event.style is None and MISREAD.fullmatch(event.value):
            advice = "write it without leading zeros and colons, or in quotes if it is a text"
            raise ValueError(f"YAML takes {event.value} for a number that is not decimal; {advice}")


def paths_of(data: Any) -> list[str]:
    """The paths of a recipe's `data` section."""
    return [data["path"]] if isinstance(data["path"], str) else list(data["path"])


def _is_setting(argument: str) -> bool:
    """Whether an argument is `key=value`; a recipe's path may have a `=` as well (sweeps/lr=0.1/recipe.yaml)."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and "/" not in key and not os.path.isfile(argument)


def _override(argument: str, known: Mapping[str, Setting]) -> DictConfig:
    """`key=value` as nested sections. A text is taken as it stands, because a path may be `[1], 50 % #2: new`; other
    values, and texts in quotes, are YAML."""
    key, _, text = argument.partition("=")
    setting, quoted = known.get(key), re.fullmatch(r"(['\"]).*\1|", text)
    listed = (
        setting is not None and setting.takes_list and re.fullmatch(r"\[.*,.*\]", text) and not os.path.exists(text)
    )
    if setting is None or not setting.is_text or quoted or listed or (setting.nullable and text in ("null", "~")):
        _check_numbers(text)
        return OmegaConf.from_dotlist([argument])
    override = OmegaConf.create()
    OmegaConf.update(override, key, text)
    return override


def _merge(config: DictConfig, override: DictConfig, known: Mapping[str, Setting], source: str) -> None:
    """Put `override` into `config`. OmegaConf.merge would copy all settings for each argument."""
    for key in _leaves(override):
        _check_known(key, known, source)
        if OmegaConf.is_dict(OmegaConf.select(config, key)) and OmegaConf.is_list(OmegaConf.select(override, key)):
            raise ConfigError(f"{key}={OmegaConf.select(override, key)}: expected a mapping")
    before = {section: config[section].backbone for section in ("model", "distill")}
    config.merge_with(override)
    for section, backbone in before.items():
        if config[section].backbone != backbone:
            config[section].options = OmegaConf.select(override, f"{section}.options", default={})


def _check_references(config: DictConfig) -> None:
    """Raises ConfigError for a `${...}` that refers to nothing."""
    for key in _leaves(config):
        try:
            if isinstance(value := OmegaConf.select(config, key), ListConfig):
                OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {_first_line(error)}") from None


def _leaves(node: Any, prefix: str | None = None) -> list[str]:
    """Dotted keys of all values that are not sections; a key may be an empty text."""
    if not isinstance(node, DictConfig) or not len(node):
        return [] if prefix is None else [prefix]
    return [
        leaf
        for key in map(str, node)
        for leaf in _leaves(node._get_node(key), key if prefix is None else f"{prefix}.{key}")
    ]


def _check_known(key: str, known: Mapping[str, Setting], source: str) -> None:
    if key in known or any(setting.free and key.startswith(setting.key + ".") for setting in known.values()):
        return
    children = [name for name in known if name.startswith(key + ".")]
    if children:
        raise ConfigError(f"{source}: {key} is a section, not a value; its keys are {', '.join(children)}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise ConfigError(f"{source}: unknown key {key}; the nearest is {near[0]}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
