"""Multi-crop and two crops on the same images at several sizes."""

import pytest

from config.groups import sizes_of_crops
from config.recipe import load_config
from perf.science.check import as_costly
from perf.science.output import page, write
from perf.science.plan import EQUAL_IMAGES, RECIPES, STUDIES, mean_and_deviation, methods_of
from perf.science.sizes import PAIR, SIZES, named, sizes
from perf.science.tables import by_size
from training.build import build_network


def configured(method):
    return load_config([str(method.recipe), "data.path=.", *method.settings])


@pytest.mark.parametrize("study", STUDIES)
def test_all_crops_of_a_recipe_are_scaled_alike(study):
    recipes = {method.name: configured(method) for method in methods_of(RECIPES / study)}
    made = {method.name: method for method in sizes(methods_of(RECIPES / study))}
    assert len(made) == 3 * len(SIZES)
    for pixels in SIZES:
        for name in PAIR:
            config, recipe = configured(made[named(name, pixels)]), recipes[name]
            factor = pixels / recipe.evaluation.size
            assert config.evaluation.size == pixels
            for kind in ("global", "local"):
                assert abs(config.crops[kind].size - factor * recipe.crops[kind].size) <= 1
                assert (config.crops[kind].count, config.crops[kind].scale) == (
                    recipe.crops[kind].count, recipe.crops[kind].scale
                )  # fmt: skip
            if factor == 1:
                assert config == recipe
            config.model.heads = 1
            build_network(config.model, [*sizes_of_crops(config.crops), pixels])  # takes all of them


def test_two_crops_have_as_many_images_as_multicrop_of_the_same_size():
    made = sizes(methods_of(RECIPES / "emoji"))
    timed = [method for method in made if not method.images_of]
    for pixels in SIZES:
        (equal,) = (method for method in made if method.name == named(EQUAL_IMAGES, pixels))
        assert equal.images_of == named("multicrop", pixels)
        assert as_costly(equal, timed) == named("two_crops", pixels)
        assert configured(equal).crops.local.count == 0


def test_both_recipes_are_required():
    with pytest.raises(ValueError, match=r"--sizes needs the recipes multicrop.yaml and two_crops.yaml"):
        sizes([method for method in methods_of(RECIPES / "emoji") if method.name != "two_crops"])


def row(name, *scores):
    mean, deviation = mean_and_deviation(scores)
    runs = [{"knn": score, "images": 10, "cpu_seconds": 9.0} for score in scores]
    figures = {"knn": {"mean": mean, "deviation": deviation}, "cpu_seconds": {"mean": 9.0, "deviation": 0.0}}
    return {"name": name, "title": name, "epochs": 4, "runs": runs, **figures}


@pytest.fixture
def report():
    scores = {"multicrop": (0.5, 0.6), "two_crops": (0.52, 0.63), EQUAL_IMAGES: (0.4, 0.5)}
    rows = [row(named(name, pixels), *values) for pixels in SIZES for name, values in scores.items()]
    about = {"minutes": 60, "train_images": 100, "test_images": 10, "seeds": [1, 2]}
    return about | {"rows": rows, "machine": {"cores": 2, "cpu": "a CPU", "date": "2026-12-01"}}


def test_each_size_is_compared_at_equal_time_and_at_equal_images(report):
    table = by_size(report)
    assert [cells[0] for cells in table.rows] == ["28", "64", "96"] and len(table.head) == len(table.rows[0])
    assert table.rows[0][1:5] == ["55.00 ± 7.07 %", "57.50 ± 7.78 %", "-2.50 ± 6.35", "0 of 2"]
    assert table.rows[0][6:8] == ["+10.00 ± 0.00", "2 of 2"]


def test_the_page_has_a_section_for_the_sizes(report, tmp_path, capsys):
    write(report, tmp_path, "emoji", "sizes")
    files = (tmp_path / "science" / "emoji-sizes.json", tmp_path / "science.md")  # without curves there is no picture
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {files[0]}, {files[1]}"
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)
    text = page(tmp_path)
    assert "### At several sizes" in text and "`make science STUDY=emoji ARGS=--sizes`" in text
    assert "| 96 | 55.00 ± 7.07 % |" in text
