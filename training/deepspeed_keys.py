"""Checks that DeepSpeed knows the keys under engine.deepspeed, and takes their values.

DeepSpeed 0.19.8 checks the keys of some sections (its pydantic models) and ignores unknown ones elsewhere. So its own
`DeepSpeedConfig` is made from mappings that note which keys it looks up: a key that it never asks for is unknown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from config.errors import ConfigError


class Noting(dict[str, Any]):
    """A mapping that notes the keys that are looked up in it, with the type of their defaults."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({key: Noting(value) if isinstance(value, dict) else value for key, value in values.items()})
        self.given, self.asked = list(values), dict[str, Any]()

    def __getitem__(self, key: str) -> Any:
        self.asked.setdefault(key, None)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.setdefault(str(key), None)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked[key] = default
        return super().get(key, default)

    def keys(self) -> Any:  # `"x" in settings.keys()` is a question too
        return self

    def __iter__(self) -> Iterator[str]:  # makes `**settings` look up each key
        return super().__iter__()

    def __copy__(self) -> Noting:
        return self


def check_keys(settings: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that DeepSpeed does not know or has removed, or a value that it does not take.

    settings: all that DeepSpeed gets. keys: those of them that stand under engine.deepspeed.
    """
    base = {key: value for key, value in settings.items() if key != "train_batch_size"}  # needs the number of ranks
    for key in keys:
        _check(base, key)
    _check_values(keys)


def _check_values(keys: Mapping[str, Any]) -> None:
    """The values of which DeepSpeed's engine fails when it is made, or in a step."""
    from deepspeed.runtime.config import DtypeEnum

    for key in ("steps_per_print", "gradient_predivide_factor"):
        if keys.get(key) is not None and not keys[key] > 0:
            raise ConfigError(f"engine.deepspeed.{key}={keys[key]}: expected more than 0")
    kind = (keys.get("data_types") or {}).get("grad_accum_dtype")
    try:
        DtypeEnum(kind or "fp32")
    except ValueError:
        raise ConfigError(f"engine.deepspeed.data_types.grad_accum_dtype={kind}: expected fp32, bf16 or fp16") from None


def _check(settings: Mapping[str, Any], key: str) -> None:
    """Check one of the keys at the top, and all below it."""
    from pydantic import ValidationError

    from training.distributed import quiet_deepspeed

    quiet_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    value = settings[key]
    asked = Noting(settings)
    try:
        DeepSpeedConfig(asked)
    except ValidationError as invalid:
        error = invalid.errors(include_url=False)[0]
        path = ".".join(map(str, (key, *error["loc"][error["loc"][0] == key :])))
        if error["type"] == "extra_forbidden":
            raise _unknown(path, _fields()) from None
        raise ConfigError(f"engine.deepspeed.{path}={error['input']}: {error['msg']}") from None
    except (DeepSpeedConfigError, AssertionError, ValueError, TypeError, AttributeError, KeyError) as error:
        _check_asked(asked, {key: value}, "", finished=False)
        reason = " ".join(str(error).split()).partition(" See http")[0][:200].rstrip(". ")
        raise ConfigError(f"engine.deepspeed.{key}={value}: DeepSpeed refuses it ({reason})") from None
    _check_asked(asked, {key: value}, "")


def _check_asked(noted: Noting, values: Mapping[str, Any], above: str, finished: bool = True) -> None:
    """Compare a section's keys and values with what DeepSpeed asked for. It has asked for nothing: a model has checked
    them. finished: False if DeepSpeed failed meanwhile."""
    if above and not noted.asked:
        return
    for key, value in values.items():
        if key not in noted.asked:
            if not finished:
                continue
            raise _unknown(f"{above}{key}", noted.asked)
        default, section = noted.asked[key], dict.get(noted, key)
        wrong = isinstance(default, bool) and not isinstance(value, bool)
        wrong |= isinstance(default, int | float) and not isinstance(value, int | float)
        if wrong:
            kind = "true or false" if isinstance(default, bool) else "a number"
            raise ConfigError(f"engine.deepspeed.{above}{key}={value}: expected {kind}")
        if isinstance(section, Noting):
            _check_asked(section, value, f"{above}{key}.", finished)


def _unknown(path: str, known: Any) -> ConfigError:
    from deepspeed import __version__

    above, _, name = path.rpartition(".")
    others = [each for each in known if each != name]  # which another section may have
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.0)
    nearest = f"; the nearest is {above and f'{above}.'}{near[0]}" if near else ""
    return ConfigError(f"engine.deepspeed.{path}: DeepSpeed {__version__} has no such key{nearest}")


def _fields() -> Iterator[str]:
    """The fields of all of DeepSpeed's models."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    pending = [DeepSpeedConfigModel]
    while pending:
        model = pending.pop()
        pending += model.__subclasses__()
        yield from model.model_fields
