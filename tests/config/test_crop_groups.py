"""Groups of crops: what a group has of its own, and what mistakes in one say."""

import pytest

from config.errors import ConfigError
from config.groups import groups_of, sizes_of_crops
from config.recipe import ROOT, load_config
from pipeline.crops import Blur, Jitter, View, crops_from_config
from training.build import sizes_of

DEMO = "config/demo.yaml"


def crops_with(*settings):
    return load_config([DEMO, *settings]).crops


def test_global_and_local_crops_are_two_groups():
    """Written as groups they are the same views with the same changes."""
    crops = crops_with("crops.flip=0.3", "crops.jitter.hue=0.1")
    old = crops_from_config(crops)
    assert all(view.own is None for view in old.views)
    written = [{key: crops[name][key] for key in ("count", "size", "scale")} for name in ("global", "local")]
    crops.groups = written
    new = crops_from_config(crops)
    assert new.changes == old.changes and new.groups == old.groups
    assert [(view.size, view.scale) for view in new.views] == [(view.size, view.scale) for view in old.views]


def test_a_group_has_what_it_names_and_the_rest_of_crops():
    first = "{blur: {probability: 1.0}, jitter: {hue: 0.1, gain: 0.3}}"
    groups = f"crops.groups=[{first}, {{count: 3, size: 16, flip: 0, solarize: {{probability: 0.2}}}}]"
    settings = ["crops.global.size=32", "crops.blur.sigma=[0.5,1]", "crops.jitter.hue=0.2"]
    crops = crops_from_config(crops_with(groups, *settings))
    assert [view.size for view in crops.views] == [32, 16, 16, 16]
    one, other, *_ = crops.changes
    assert one.blur == Blur(1.0, (0.5, 1.0)) and other.blur == Blur(crops.blur.probability, (0.5, 1.0))
    assert (one.jitter.hue, other.jitter.hue) == (0.1, 0.2) and (one.jitter.gain, other.jitter.gain) == (0.3, 0.0)
    assert (one.flip, other.flip, other.solarize.probability) == (crops.flip, 0, 0.2)
    assert crops.for_evaluation(24, 1.0).views == (View(24, (1.0, 1.0)),)


def test_the_first_group_gives_the_size_of_evaluation_and_all_of_them_those_of_the_network():
    config = load_config([DEMO, "crops.groups=[{size: 24}, {size: 24}, {size: 12, count: 2}]", "evaluation.size=auto"])
    assert sizes_of_crops(config.crops) == [24, 24, 12] and sizes_of(config) == [24, 24, 12, 24]


def test_a_section_of_an_older_checkpoint_has_global_and_local_crops():
    older = {"global": {"count": 2, "size": 32, "scale": [0.2, 1]}, "local": {"count": 0, "size": 8, "scale": [0.1, 1]}}
    assert groups_of({**older, "flip": 0.5}) == [{"count": 2, "size": 32, "scale": [0.2, 1], "flip": 0.5}]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("[{blur: {probability: 2}}]", "crops.groups[0].blur.probability=2: expected a probability from 0 to 1"),
        ("[{size: 24}, {turn: 1}]", "crops.groups[1]: unknown key turn; the nearest is quarter_turn"),
        ("[{size: 24}, {jitter: {hue: red}}]", "crops.groups[1].jitter.hue=red: expected auto, a number or null"),
        ("[{jitter: 3}]", "crops.groups[0].jitter: expected a mapping, e.g. {probability: 0.5}"),
        ("[{scale: [0.5]}]", "crops.groups[0].scale=[0.5]: expected a list of 2 numbers or null"),
        ("[{size:24}]", "crops.groups[0]: unknown key size:24; the nearest is size"),
        ("[3]", "crops.groups=[3]: expected a list of mappings"),
        ("3", "crops.groups=3: expected a list of mappings"),
        (
            "[{count: 1}]",
            "crops.groups=[{'count': 1}]: expected two crops or more in all: one predicts the code of another",
        ),
        ("[{size: 24}, {size: 12}, {size: 24}]", "expected groups of one size one after the other"),
    ],
)
def test_a_mistake_in_a_group_is_one_line(groups, message):
    with pytest.raises(ConfigError) as caught:
        load_config([str(ROOT / DEMO), f"crops.groups={groups}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_codes_come_from_crops_counted_over_the_groups():
    groups = "crops.groups=[{size: 24}, {size: 24}, {size: 12, count: 2}]"
    assert load_config([DEMO, groups, "swav.assigning=[0,3]"]).swav.assigning == [0, 3]
    with pytest.raises(ConfigError, match=r"swav\.assigning=\[0, 4\]: expected different crops from 0 to 3"):
        load_config([DEMO, groups, "swav.assigning=[0,4]"])


# of each view: size, smallest and largest share of the area, chance of blur, chance of solarizing
BYOL = [(224, 0.08, 1.0, 1.0, 0.0), (224, 0.08, 1.0, 0.1, 0.2)]
DINO = [(224, 0.4, 1.0, 1.0, 0.0), (224, 0.4, 1.0, 0.1, 0.2), *[(96, 0.05, 0.4, 0.5, 0.0)] * 8]


@pytest.mark.parametrize(("name", "views"), [("byol", BYOL), ("dino", DINO)])
def test_the_recipes_of_views_have_the_published_numbers(name, views):
    config = load_config([f"config/views/{name}.yaml", "data.path=/images"])
    crops = crops_from_config(config.crops)
    pairs = list(zip(crops.views, crops.changes, strict=True))
    assert [(v.size, *v.scale, own.blur.probability, own.solarize.probability) for v, own in pairs] == views
    assert {own.jitter for own in crops.changes} == {Jitter(0.8, 0.4, 0.4, 0.2, 0.1)}
    same = {(own.flip, own.grayscale, own.blur.sigma, own.solarize.threshold) for own in crops.changes}
    assert same == {(0.5, 0.2, (0.1, 2.0), 0.5)} and config.swav.assigning == [0, 1]
    assert not any(own.turns or own.posterize.probability for own in crops.changes)


@pytest.mark.parametrize("setting", ["crops.local.count=4", "crops.local.scale=[0.1,0.3]", "crops.global.count=3"])
def test_crops_that_groups_replace_are_no_settings_of_the_command_line(setting):
    crops_with(setting)
    with pytest.raises(ConfigError, match=r"means nothing beside crops\.groups; set it in a group") as told:
        crops_with("crops.groups=[{size: 24, count: 2}]", setting)
    assert str(told.value).startswith(f"{setting}: ")
    with pytest.raises(ConfigError, match=r"means nothing beside crops\.groups"):
        load_config(["config/views/byol.yaml", "data.path=none", setting])
    assert crops_with("crops.groups=[{count: 2}]", "crops.global.size=16")["global"].size == 16
