"""All settings: the sections in their order, and the flat list."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from config.schema.images import CropSettings, Data, Pipeline
from config.schema.machine import Engine, Launch
from config.schema.method import Distill, Model, Optimizer, Swav
from config.schema.running import Checkpoint, Evaluation, Perf, Run
from config.schema.setting import Heading, Section, Setting, declared, setting


class Settings(Section):
    """Every setting, with its default."""

    method: Literal["swav", "deepclusterv2", "selav2", "distill"] = setting(
        "swav", "where the targets come from; distill: from a trained teacher"
    )
    run: Run = Run()
    checkpoint: Checkpoint = Checkpoint()
    data: Data = Data()
    crops: CropSettings = CropSettings()
    pipeline: Pipeline = Pipeline()
    model: Model = Model()
    swav: Swav = Swav()
    distill: Distill = Distill()
    optimizer: Optimizer = Optimizer()
    engine: Engine = Engine()
    launch: Launch = Launch()
    perf: Perf = Perf()
    evaluation: Evaluation = Evaluation()


@cache
def outline() -> tuple[Heading | Setting, ...]:
    """Sections and settings in the order of declaration."""
    return tuple(declared(Settings))


@cache
def settings() -> dict[str, Setting]:
    """Every setting by its dotted key."""
    return {entry.key: entry for entry in outline() if isinstance(entry, Setting)}


def defaults() -> dict[str, Any]:
    """All defaults as nested sections, as in default.yaml."""
    return Settings().model_dump(by_alias=True)


def setting_of(key: str) -> Setting | None:
    """The setting of `key`, or the mapping that holds it (model.options for model.options.width); else None."""
    while key and key not in settings():
        key = key.rpartition(".")[0]
    return settings().get(key)


def effect_on_resume(key: str) -> str:
    """The effect of another value of `key` when a run resumes; empty: another value is refused."""
    setting = setting_of(key)
    return setting.resume if setting else ""
