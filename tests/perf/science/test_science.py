"""The science check at toy size: the whole program, and its arithmetic."""

import json
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from config.recipe import ROOT
from perf.science.check import locked
from perf.science.output import against, holds
from perf.science.plan import Cost, curve_epochs, epochs_for, mean_and_deviation, methods_of, share_of
from perf.science.runs import cost_of
from perf.science.search import CANDIDATES, candidates
from support.evaluations import small_dataset
from support.forks import run_forked
from support.programs import run_module

TOY = {
    "run": {"batch_size": 16},
    "model": {
        "options": {"block": "basic", "layers": [1], "base_width": 8, "stem": "small", "stem_stride": 2},
        "hidden_dim": 16, "embedding_dim": 8, "prototypes": 6,
    },
    "evaluation": {"size": 16},
}  # fmt: skip


science = partial(run_forked, "perf.science")


def toy_recipes(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        recipe = ROOT / "config" / "science" / f"{name}.yaml"
        small = OmegaConf.merge(OmegaConf.load(recipe), TOY)
        (folder / recipe.name).write_text(recipe.read_text().splitlines()[0] + "\n" + OmegaConf.to_yaml(small))
    return folder


@pytest.mark.slow(seconds=60)
def test_the_whole_check_at_toy_size_and_no_job_runs_twice(tmp_path):
    data, out = small_dataset(tmp_path / "data", 240, 60), tmp_path / "docs"
    out.mkdir()
    words = ["--data", data, "--recipes", toy_recipes(tmp_path / "recipes", "deepclusterv2"), "--out", out]
    words += ["--work", tmp_path / "work", "--seeds", 5, "--rounds", 1]
    process = science(*words, "--minutes", 0.1)
    assert process.returncode == 0, process.stderr
    report = json.loads((out / "science.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["deepclusterv2", "supervised", "random", "pixels"]
    for row in rows.values():
        assert 0.3 < row["knn"]["mean"] <= 1 and 0.3 < row["linear"]["mean"] <= 1, row
    for name in ("deepclusterv2", "supervised"):
        (run,) = rows[name]["runs"]
        assert run["curve"][-1]["epoch"] == report["epochs"][name] == rows[name]["epochs"]
        assert run["curve"][-1]["training_seconds"] == rows[name]["training_seconds"]["mean"] > 0
        assert run["images"] == 240 * report["epochs"][name]
    # here the k-NN of the curve uses all training images too, since there are few
    assert rows["deepclusterv2"]["runs"][0]["curve"][-1]["knn"] == rows["deepclusterv2"]["runs"][0]["knn"]
    assert "classifier" in rows["supervised"] and "classifier" not in rows["deepclusterv2"]
    page = (out / "science.md").read_text()
    assert f"{rows['deepclusterv2']['linear']['mean'] * 100:.2f} %" in page and "DeepCluster-v2" in page
    assert (out / "science.png").read_bytes()[:4] == b"\x89PNG"

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    (tmp_path / "work" / "scores" / "pixels.json").unlink()
    assert science(*words, "--minutes", 0.1).returncode == 0
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert [path.name for path in times if again[path] != times[path]] == ["pixels.json"]
    assert json.loads((out / "science.json").read_text())["rows"][0] == report["rows"][0]

    other = run_module("perf.science", *words, "--minutes", 3, folder=ROOT)
    assert other.returncode == 2
    (line,) = other.stderr.splitlines()
    assert line.startswith("swave: --work=") and "other settings" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes=0: expected more than 0"),
        (["--seeds", "1,1"], "--seeds=1,1: expected different integers"),
        (["--methods", "swav"], "--methods=swav: unknown 'swav'; there are multicrop, two_crops"),
        (["--data", "nowhere"], "--data=nowhere: no such folder"),
        (["--out", "nowhere"], "--out=nowhere: no such folder"),
        (["--cores", "100000"], "--cores=100000: expected 1 to"),
        (["--recipes", "tests"], "--recipes=tests: no recipe"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    done = run_module("perf.science", *arguments, folder=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("swave: ") and message in line


def test_one_check_at_a_time_locks_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another science check works there"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_methods_train_for_the_same_time_as_nearly_as_whole_epochs_allow():
    costs = {"a": Cost(30, 0, 9), "b": Cost(45, 0, 9), "c": Cost(29, 11, 9)}
    epochs = epochs_for(costs, 280)
    taken = {name: epochs[name] * cost.epoch + cost.first for name, cost in costs.items()}
    assert all(250 <= seconds <= 281 for seconds in taken.values())
    assert max(taken.values()) / min(taken.values()) < 1.01  # 9, 6 and 9 epochs take about 270 seconds each
    assert epochs_for(costs, 5) == {"a": 1, "b": 1, "c": 1}


def test_two_short_epochs_give_the_cost_of_a_long_one():
    assert cost_of([4.0, 7.0], 20.0, 6.0, memory=False) == Cost(18.0, 1.0, 13.0)
    assert cost_of([4.0, 7.0], 20.0, 6.0, memory=True) == Cost(18.0, 6.0, 13.0)


def test_the_runs_share_the_budget_that_other_work_leaves():
    assert share_of(5400, 600, [20.0] * 12, 80.0) == pytest.approx((5400 - 600 - 240 - 960) / 12)
    assert share_of(100, 600, [20.0], 80.0) == 0


def test_small_pieces():
    assert [curve_epochs(n) for n in (1, 8, 11, 40)] == [1, 1, 1, 5]
    assert mean_and_deviation([0.8, 0.9]) == (pytest.approx(0.85), pytest.approx(0.0707106781))
    assert mean_and_deviation([0.8]) == (0.8, None)


def test_both_variants_of_swav_have_as_many_candidates_and_their_settings_load():
    from config.recipe import load_config

    assert len(CANDIDATES["multicrop"]) == len(CANDIDATES["two_crops"])
    methods = candidates(methods_of())
    assert len(methods) == sum(map(len, CANDIDATES.values()))
    assert len({method.settings for method in methods}) == len(methods)
    for method in methods:
        config = load_config([str(method.recipe), *method.settings])
        assert (config.crops.local.count > 0) == method.name.startswith("multicrop")


def test_the_page_compares_methods_and_marks_the_settings_of_the_recipes():
    def runs(*scores: float) -> dict:
        return {"knn": {"mean": sum(scores) / len(scores)}, "runs": [{"knn": score} for score in scores]}

    sentence = against(runs(0.86, 0.87, 0.85), runs(0.85, 0.85, 0.86), "knn", "k-NN")
    assert sentence == "k-NN 86.00% against 85.33%, better by 0.67 points, ahead with 2 of 3 seeds"
    assert "worse by 5.00 points, ahead with 0 of 1 seed" in against(runs(0.8), runs(0.85), "knn", "k-NN")
    assert holds({"recipe": "two_crops", "settings": []})
    assert not holds({"recipe": "two_crops", "settings": ["optimizer.final_lr=1.0"]})
