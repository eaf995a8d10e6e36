"""Checks the types and ranges of a configuration; the first mistake is one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from pydantic import ValidationError

from config.errors import ConfigError
from config.schema.groups import Group
from config.schema.ranges import alternatives, own_limits
from config.schema.setting import Setting, declared
from config.schema.settings import Settings, setting_of

OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "predicate_failed"}


def check_types_and_ranges(values: Mapping[str, Any]) -> None:
    """Check every setting by itself. Raises ConfigError: `KEY=VALUE: expected ...`.

    values: the sections as nested mappings, as in default.yaml.
    """
    try:
        Settings.model_validate(values)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
        if errors[0]["loc"][:2] == ("crops", "groups") and len(errors[0]["loc"]) > 3:
            raise ConfigError(_in_a_group(values["crops"]["groups"], errors)) from None
        setting = _setting(errors[0]["loc"])
        kinds = {error["type"] for error in errors if _setting(error["loc"]) == setting}
        value = reduce(getitem, setting.key.split("."), values)
        shown = " ".join(str(value).split())  # on one line
        raise ConfigError(f"{setting.key}={shown}: expected {_expected(setting, value, kinds)}") from None


def _setting(location: tuple[int | str, ...]) -> Setting:
    """The setting at pydantic's location, which also has positions in lists and members of unions."""
    setting = setting_of(".".join(map(str, location)))
    assert setting is not None, location
    return setting


def _in_a_group(groups: Any, errors: Sequence[Any]) -> str:
    """The message for a mistake in a key of a group of crops. errors: pydantic's."""
    known = {entry.key: entry for entry in declared(Group) if isinstance(entry, Setting)}
    place = errors[0]["loc"][2:]
    index, path = place[0], [str(part) for part in place[1:]]
    name = f"crops.groups[{index}]"
    if errors[0]["type"] == "extra_forbidden":
        near = difflib.get_close_matches(".".join(path), known, n=1, cutoff=0.0)
        return f"{name}: unknown key {'.'.join(path)}; the nearest is {near[0]}"
    while path and ".".join(path) not in known:
        path.pop()
    if not path:
        return f"{name}.{place[1]}: expected a mapping, e.g. {{probability: 0.5}}"
    value = reduce(getitem, path, groups[index])
    shown = " ".join(str(value).split())
    kinds = {error["type"] for error in errors if error["loc"][2 : 3 + len(path)] == (index, *path)}
    return f"{name}.{'.'.join(path)}={shown}: expected {_expected(known['.'.join(path)], value, kinds)}"


def _expected(setting: Setting, value: Any, kinds: set[str]) -> str:
    """The words for the values that the setting takes. kinds: pydantic's names of all errors of the value."""
    if setting.expected:
        return setting.expected
    if "finite_number" in kinds:
        return "finite numbers"
    if kinds & OUT_OF_RANGE:
        limits = [limit for _, metadata in alternatives(setting.annotation) for limit in own_limits(metadata)]
        return next((str(limit) for limit in limits if not limit.admits(value)), setting.range)
    example = f", e.g. {setting.default}" if isinstance(setting.default, list) else ""
    return setting.kind + example
