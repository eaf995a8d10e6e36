"""The declaration of the settings is complete and consistent, and files and help texts follow from it."""

import math
import re
import subprocess
import sys
from functools import reduce
from operator import getitem
from typing import Literal, get_args, get_origin

import pytest
from annotated_types import Len, MinLen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import train
from config.errors import ConfigError
from config.recipe import DEFAULTS, ROOT, default_config, load_config
from config.schema.__main__ import PAGE, main
from config.schema.check import check_types_and_ranges
from config.schema.ranges import Holds, Range, alternatives
from config.schema.render import default_yaml, help_text, settings_page
from config.schema.setting import Heading
from config.schema.settings import defaults, effect_on_resume, outline
from config.schema.settings import settings as all_settings
from training.auto import fit
from training.distributed import Cluster
from training.run_directory import changed_settings

KEYS = list(all_settings())
DEMO = "config/demo.yaml"
SOME_CONFIG = OmegaConf.create(defaults())


def values_with(key, value):
    """The defaults as plain sections, with another value for one key."""
    values = defaults()
    *sections, name = key.split(".")
    reduce(getitem, sections, values)[name] = value
    return values


# ---- the declaration


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_has_a_help_text_of_one_line(key):
    help = all_settings()[key].help
    assert help and help == " ".join(help.split()) and len(help) < 240


def test_every_section_has_a_help_text():
    assert all(entry.help for entry in outline() if isinstance(entry, Heading))


def test_every_default_lies_in_its_range():
    check_types_and_ranges(defaults())


def test_only_the_images_have_no_default():
    assert [key for key, setting in all_settings().items() if setting.required] == ["data.path"]


@pytest.mark.parametrize(("name", "text"), [(DEFAULTS, default_yaml), (PAGE, settings_page)])
def test_generated_files_are_current(name, text):
    assert name.read_text() == text(), "run `make default-yaml`"


def test_default_yaml_holds_the_defaults_on_lines_of_at_most_120_characters():
    assert OmegaConf.load(DEFAULTS) == default_config()
    assert max(map(len, DEFAULTS.read_text().splitlines())) <= 120


# ---- types and ranges

BOUNDS = [-1, 0, 1, 2, 3, 4, 64, 65, 1024, 1025, 4096, 4097, 2**32 - 1, 2**32, 0.0, 0.0019, 0.002, 0.5, 0.51, 1.0, 1.01]
WORDS = ["auto", "swav", "dali", "gpu", "adamw", "bf16", "1 epoch", "0 steps", "any text", "two\nlines"]
NUMBERS = st.sampled_from(BOUNDS) | st.integers(-9, 10**10) | st.floats()
SIMPLE = st.none() | st.booleans() | st.sampled_from(WORDS) | NUMBERS
VALUES = SIMPLE | st.lists(NUMBERS | st.booleans(), max_size=4) | st.dictionaries(st.just("x"), SIMPLE, max_size=1)


def fits(annotation, value):
    """Whether `value` is of a type and in the range that the declaration gives, by plain comparisons."""
    return any(_fits_one(kind, metadata, value) for kind, metadata in alternatives(annotation))


def _fits_one(kind, metadata, value):
    if get_origin(kind) is Literal:
        return type(value) is str and value in get_args(kind)
    if get_origin(kind) is list:
        good = type(value) is list and all(fits(get_args(kind)[0], item) for item in value)
        sizes = [limit for limit in metadata if isinstance(limit, Len | MinLen)]
        good = good and all(
            size.min_length <= len(value) <= (getattr(size, "max_length", None) or 99) for size in sizes
        )
    elif get_origin(kind) is dict:
        good = type(value) is dict
    elif kind is float:
        good = type(value) in (int, float) and math.isfinite(value)
    else:
        good = type(value) is kind
    return good and all(limit.admits(value) for limit in metadata if isinstance(limit, Range | Holds))


@given(key=st.sampled_from(KEYS), value=VALUES)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_exactly_the_values_outside_type_or_range_are_refused_in_one_line(key, value):
    values = values_with(key, value)
    if fits(all_settings()[key].annotation, value):
        check_types_and_ranges(values)
        return
    with pytest.raises(ConfigError) as caught:
        check_types_and_ranges(values)
    assert str(caught.value).startswith(f"{key}={' '.join(str(value).split())}: expected ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("swav.hard=1", "swav.hard=1: expected true or false"),
        ("engine.stage=true", "engine.stage=True: expected auto, 0, 1, 2 or 3"),
        ("data={test: 3}", "data.test=3: expected a text or null"),
        ("crops.std=[1,1,0]", "crops.std=[1, 1, 0]: expected auto or a list of numbers (each more than 0)"),
        ("crops.std=[]", "crops.std=[]: expected auto or a list of numbers"),
        ("data.channels=0", "data.channels=0: expected 1 to 1024 channels"),
        ("data.channels=rgba", "data.channels=rgba: expected auto, rgb or an integer"),
        ("swav.epsilon=0.001", "swav.epsilon=0.001: expected at least 0.002: below, codes leave the range of numbers"),
        ("pipeline.threads=0", "pipeline.threads=0: expected at least 1"),
        ("engine.deepspeed={a: {b: .nan}}", "engine.deepspeed={'a': {'b': nan}}: expected finite numbers"),
        ("model.options=3", "model.options=3: expected a mapping"),
    ],
)
def test_the_words_of_a_range(setting, message):
    with pytest.raises(ConfigError) as caught:
        load_config([DEMO, setting])
    assert str(caught.value) == message


def test_every_setting_that_may_be_auto_is_chosen():
    """training/auto.py chooses all of them except the bucket size, which DeepSpeed's configuration chooses, and the
    start of the prototypes, for which training/build.py looks into the file of the weights, and the teacher's, which
    only method=distill has (`test_distillation.py`), and what the scan of the images decides. It says each choice but
    those that a run makes anew and says once it has timed the loaders."""
    left = {"engine.bucket_size", "model.prototypes_from", "distill.prototypes_from", "data.channels", "data.layout"}
    left |= {"data.range"}
    timed = {"pipeline.backend", "pipeline.hw_decoder_load"}
    auto = {key for key, setting in all_settings().items() if setting.auto}
    config = default_config()
    for key in auto:
        OmegaConf.update(config, key, "auto")
    config.model.weights = "start.safetensors"
    said = "  ".join(["", *fit(config, 10_000, Cluster())])
    assert {key for key in auto if not re.search(rf"[ ]{re.escape(key)}=", said)} == left | timed
    assert {key for key in auto if OmegaConf.select(config, key) == "auto"} == left


# ---- resuming


@pytest.mark.parametrize("key", KEYS)
def test_a_run_may_resume_with_other_values_of_the_settings_that_say_so(key):
    fixed = ("method", "run.batch_size", "run.seed", "data.neighbors", "data.weights", "data.balance", "data.bands")
    fixed += ("data.pages", "data.stretch", "data.range", "crops.", "model.", "swav.", "distill.", "optimizer.")
    free = ("crops.jitter.exact", "crops.decode", "model.weights", "distill.weights")
    assert bool(effect_on_resume(key)) != (key.startswith(fixed) and key not in free)
    saved = values_with(key, {"other": 1} if all_settings()[key].free else "other")
    if effect_on_resume(key):
        (change,) = changed_settings(SOME_CONFIG, saved).values()
        assert change.startswith(("other -> ", "1 -> "))
    else:
        with pytest.raises(ConfigError, match=f"holds a run with other settings \\({key}"):
            changed_settings(SOME_CONFIG, saved)


OF_TEACHERS = {"distill.prototypes_from"}  # kept with method=distill: tests/training/test_distillation.py
OF_STRETCHES = {"data.range"}  # kept with data.stretch: tests/training/sources/test_pixel_sources.py
MAY_BE_AUTO = {key for key, setting in all_settings().items() if setting.auto}


@pytest.mark.parametrize(
    "key", sorted({key for key, each in all_settings().items() if each.auto} - OF_TEACHERS - OF_STRETCHES)
)
def test_auto_keeps_what_the_run_began_with_where_it_must_not_change(key):
    """The run began with more images a step and more epochs than auto would choose by; others are chosen again."""
    config, begun_with = default_config(), default_config()
    for one in (config, begun_with):
        for name in ("pipeline.threads", "engine.stage", key):
            OmegaConf.update(one, name, "auto")
    begun_with.run.epochs = 4000
    fit(begun_with, 10_000_000, Cluster())
    lines = fit(config, 10_000, Cluster(), OmegaConf.to_container(begun_with))
    kept = f"{key}={str(OmegaConf.select(begun_with, key)).lower()}  (the run has begun with it)"
    if not all_settings()[key].keeps_auto:
        assert not any(line.startswith(f"{key}=") and "has begun" in line for line in lines)
    else:
        assert OmegaConf.select(config, key) == OmegaConf.select(begun_with, key) != "auto"
        assert kept in lines
    changed_settings(config, OmegaConf.to_container(begun_with))


def test_a_warm_up_with_which_a_run_began_does_not_fit_into_fewer_epochs():
    config, begun_with = default_config(), default_config()
    config.run.epochs, begun_with.optimizer.warmup_epochs = 5, 10.0
    with pytest.raises(ConfigError, match=r"^run\.epochs=5 is less than optimizer\.warmup_epochs=10\.0$"):
        fit(config, 10_000, Cluster(), OmegaConf.to_container(begun_with))


def test_a_key_in_a_free_section_resumes_as_its_section_does():
    assert effect_on_resume("engine.deepspeed.fp16.hysteresis")
    assert not effect_on_resume("model.options.width") and not effect_on_resume("no.such.key")


# ---- help


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["optimizer.base_lr"], ["optimizer.base_lr"]),
        (["base_lr"], ["optimizer.base_lr"]),
        (["swav.queue"], ["swav.queue.length", "swav.queue.start_epoch"]),
        (["perf", "method"], ["perf.profile", "perf.steps", "perf.skip", "method"]),
        (["model.options.width"], ["model.options"]),
        ([], KEYS),
    ],
)
def test_help_names_the_settings_that_were_asked_for(names, keys):
    lines = [line for line in help_text(names).splitlines() if line.startswith("  ") and line[2] != " "]
    assert [line.strip().partition("=")[0] for line in lines] == keys


def test_help_has_default_range_text_and_effect_on_resume(capsys):
    assert main(["run.epochs"]) == 0
    text = capsys.readouterr().out
    assert (
        "run.epochs=100" in text
        and "an integer (at least 1, at most 100000)" in text
        and "passes over the images" in text
    )
    assert "may change on resume: yes (the run gets longer or shorter" in text


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_train_explains_a_setting_or_itself(flag, capsys):
    assert train.main([DEMO, flag, "optimizer.base_lr"]) == 0
    assert capsys.readouterr().out == help_text(["optimizer.base_lr"]) + "\n"
    assert train.main([DEMO, "run.epochs=3", flag]) == 0
    assert capsys.readouterr().out == f"{train.__doc__}\n"


def test_a_misspelled_key_gets_the_nearest_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help", "optimzer.base_lr"])
    assert end.value.code == 2
    expected = "swave: optimzer.base_lr: no such setting or section; the nearest is optimizer.base_lr\n"
    assert capsys.readouterr().err == expected


def test_help_loads_no_pydantic_and_help_for_settings_no_torch():
    code = (
        "import sys, train\n"
        "assert train.main(['--help']) == 0 and 'pydantic' not in sys.modules\n"
        "assert train.main(['--help', 'optimizer']) == 0 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL)
