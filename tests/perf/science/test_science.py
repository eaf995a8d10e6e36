"""The science check at toy size: the whole program, and its arithmetic."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from config.groups import sizes_of_crops
from config.recipe import ROOT, load_config
from perf.science.__main__ import main
from perf.science.check import locked
from perf.science.choices import BASE, LARGE, NONE, WHOLE, choices
from perf.science.hands import across_hands
from perf.science.measures import ordering
from perf.science.plan import (
    EQUAL_IMAGES,
    RECIPES,
    STUDIES,
    Cost,
    curve_epochs,
    epochs_for,
    mean_and_deviation,
    methods_of,
    paired,
    share_of,
)
from perf.science.runs import Setup, cost_of, training
from perf.science.score import balanced
from perf.science.search import CANDIDATES, candidates
from perf.science.subset import pack_for_search
from perf.science.tables import against, chosen, holds, orderings, steps_to_multicrop, verdict
from pipeline.dataset.idx import stored_png
from pipeline.dataset.labelled import labelled_data
from pipeline.dataset.reader import Reader
from pipeline.dataset.shards import pack
from pipeline.dataset.table import SampleTable
from support.evaluations import small_dataset
from support.forks import Script, run_forked
from support.programs import run_module
from training.build import build_network

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
        recipe = RECIPES / "fashion-mnist" / f"{name}.yaml"
        small = OmegaConf.merge(OmegaConf.load(recipe), TOY)
        (folder / recipe.name).write_text(recipe.read_text().splitlines()[0] + "\n" + OmegaConf.to_yaml(small))
    return folder


def forked(job, _core):
    """As perf.science.jobs.start, on a forked process."""
    job.done.parent.mkdir(parents=True, exist_ok=True)
    name, *words = job.command[job.command[0] == "-m" :]
    return Script(ROOT / f"{name.removesuffix('.py').replace('.', '/')}.py", words, job.log)


@pytest.mark.slow(seconds=30)
def test_the_whole_check_at_toy_size_and_no_job_runs_twice(tmp_path, monkeypatch, capsys):
    data, out = small_dataset(tmp_path / "data", 240, 60), tmp_path / "docs"
    out.mkdir()
    words = ["--data", data, "--recipes", toy_recipes(tmp_path / "recipes", "deepclusterv2"), "--out", out]
    words += ["--work", tmp_path / "work", "--seeds", 5, "--rounds", 1]
    with monkeypatch.context() as patched:
        patched.setattr("perf.science.jobs.start", forked)
        assert main([*map(str, words), "--minutes", "0.1"]) == 0, capsys.readouterr()
    report = json.loads((out / "science" / "fashion-mnist.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["deepclusterv2", "supervised", "random", "pixels"]
    for row in rows.values():
        assert 0.3 < row["knn"]["mean"] <= 1 and 0.3 < row["linear"]["mean"] <= 1, row
    for name in ("deepclusterv2", "supervised"):
        (run,) = rows[name]["runs"]
        assert run["curve"][-1]["epoch"] == report["epochs"][name] == rows[name]["epochs"]
        assert run["curve"][-1]["training_seconds"] == rows[name]["cpu_seconds"]["mean"] > 0
        assert run["images"] == 240 * report["epochs"][name]
    # here the k-NN of the curve uses all training images too, since there are few
    assert rows["deepclusterv2"]["runs"][0]["curve"][-1]["knn"] == rows["deepclusterv2"]["runs"][0]["knn"]
    assert "classifier" in rows["supervised"] and "classifier" not in rows["deepclusterv2"]
    assert 1 <= rows["deepclusterv2"]["embedding_rank"]["mean"] <= 8 and "embedding_rank" not in rows["supervised"]
    (run,) = rows["deepclusterv2"]["runs"]
    assert 1 <= run["rankme"] <= 8 and 1 <= run["rankme_features"] <= 8 and 1 <= run["lidar"] <= 8
    assert run["alpha_req"] > 0 and "rankme" not in rows["supervised"]["runs"][0]
    page = (out / "science.md").read_text()
    assert f"{rows['deepclusterv2']['linear']['mean'] * 100:.2f} %" in page and "DeepCluster-v2" in page
    assert (out / "science.png").read_bytes()[:4] == b"\x89PNG"

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    (tmp_path / "work" / "scores" / "pixels.json").unlink()
    assert science(*words, "--minutes", 0.1).returncode == 0
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert [path.name for path in times if again[path] != times[path]] == ["pixels.json"]
    assert json.loads((out / "science" / "fashion-mnist.json").read_text())["rows"][0] == report["rows"][0]

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
        (["--methods", "two_crops,two_crops_images"], "two_crops_images needs multicrop and two_crops"),
        (["--out", "nowhere"], "--out=nowhere: no such folder"),
        (["--cores", "100000"], "--cores=100000: expected 1 to"),
        (["--recipes", "tests"], "--recipes=tests: no recipe"),
        (["--study", "imagenet"], "--study=imagenet: there are fashion-mnist, emoji, openclipart"),
        (["--search", "--choices"], "argument --choices: not allowed with argument --search"),
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


@pytest.mark.parametrize("study", STUDIES)
def test_both_variants_of_swav_have_as_many_candidates_and_their_settings_load(study):
    assert len(CANDIDATES[study]["multicrop"]) == len(CANDIDATES[study]["two_crops"])
    methods = candidates(methods_of(RECIPES / study), study)
    assert len(methods) == sum(map(len, CANDIDATES[study].values()))
    assert len({method.settings for method in methods}) == len(methods)
    for method in [*methods, *choices(methods_of(RECIPES / study))]:
        config = load_config([str(method.recipe), *method.settings])
        assert (config.crops.local.count > 0) == (method.recipe.stem == "multicrop" and method.name != NONE)
        assert config.swav.queue.length == "auto" or config.swav.queue.length % config.run.batch_size == 0


def runs(*scores: float) -> dict:
    mean, deviation = mean_and_deviation(scores)
    return {"knn": {"mean": mean, "deviation": deviation}, "runs": [{"knn": score} for score in scores]}


def test_the_page_compares_methods_by_seed_and_marks_the_settings_of_the_recipes():
    sentence = against(runs(0.86, 0.87, 0.85), runs(0.85, 0.85, 0.86), "knn", "k-NN")
    assert sentence == "k-NN 86.00% against 85.33%, better by 0.67 points (± 3.79), ahead with 2 of 3 seeds"
    assert "worse by 5.00 points, ahead with 0 of 1 seed" in against(runs(0.8), runs(0.85), "knn", "k-NN")
    assert holds({"recipe": "two_crops", "settings": []}, RECIPES / "fashion-mnist")
    assert not holds({"recipe": "two_crops", "settings": ["optimizer.final_lr=1.0"]}, RECIPES / "fashion-mnist")


def test_two_crops_also_train_on_as_many_images_as_multicrop():
    for study in STUDIES:
        methods = {method.name: method for method in methods_of(RECIPES / study)}
        equal = methods[EQUAL_IMAGES]
        assert (equal.recipe, equal.images_of) == (methods["two_crops"].recipe, "multicrop")
    scores = {"multicrop": (0.8, 0.9), "two_crops": (0.85, 0.95), EQUAL_IMAGES: (0.7, 0.8)}
    rows = [{"name": name, **runs(*values)} for name, values in scores.items()]
    for row in rows:
        row |= {"linear": row["knn"], "runs": [run | {"linear": run["knn"]} for run in row["runs"]]}
    sentences = verdict({"rows": rows})
    assert "not the only reason" not in sentences
    rows[0] |= runs(0.6, 0.7) | {"linear": rows[0]["linear"]}
    rows[0]["runs"] = [run | {"linear": 0.5} for run in rows[0]["runs"]]
    assert verdict({"rows": rows}).endswith("the time that more crops take is not the only reason.")
    time, images = sentences.split(" Multi-crop")
    assert "at equal time: k-NN 85.00% against 90.00%, worse by 5.00 points" in time
    assert "at equal images: k-NN 85.00% against 75.00%, better by 10.00 points" in images


def test_a_measure_orders_pairs_of_runs_as_their_accuracy_does():
    figures = [(0.5, 5.0, 1.0, 0.9), (0.6, 4.0, 2.0, 0.95), (0.7, 4.5, 3.0, 1.3), (0.7, 1.0, 0.0, 9.0)]
    found = ordering([{"knn": k, "mean_loss": loss, "lidar": r, "alpha_req": a} for k, loss, r, a in figures])
    # the last two have the same accuracy, so five pairs count
    assert found == {"mean_loss": 4 / 5, "lidar": 3 / 5, "alpha_req": 1 / 5}
    table = orderings({"search": {"rows": [{"runs": [{"knn": k, "mean_loss": loss}]} for k, loss, _, _ in figures]}})
    assert table.head == ("measure", "search, 4 runs") and table.rows == [["loss", "80%"]]
    assert orderings({"search": {"rows": [{"runs": [{"knn": 0.5}]}]}}) is None


@pytest.mark.parametrize("count", [2, 3, 6, 10])
def test_the_interval_of_a_difference_is_students(count):
    stats = pytest.importorskip("scipy.stats")
    random = np.random.RandomState(count)
    one, other = random.rand(2, count)
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    mean, half = paired(one.tolist(), other.tolist())
    assert (mean - half, mean + half) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))


def test_a_choice_is_compared_with_the_recipe_of_the_same_seed():
    base, other = (
        {"name": t, "title": t, "epochs": 3, **runs(*scores)}
        for t, scores in (("recipe", (0.5, 0.6)), ("queue", (0.52, 0.63)))
    )
    table = chosen({"rows": [base, other]})
    assert table.rows[0][2:4] == ["", ""]
    assert table.rows[1][2:4] == ["+2.50 ± 6.35", "2 of 2"]
    table = chosen({"rows": [base, other, {**base, "name": "more", "against": "queue"}]})
    assert table.rows[2][2:4] == ["-2.50 ± 6.35", "0 of 2"]


def test_three_steps_lead_from_two_crops_to_multicrop():
    scores = {BASE: (0.5, 0.6), "queue": (0.1, 0.1), NONE: (0.4, 0.3), WHOLE: (0.7, 0.7), LARGE: (0.8, 0.7)}
    rows = [{"name": name, **runs(*values)} for name, values in scores.items()]
    text = steps_to_multicrop({"rows": rows})
    differences = [sign(word) for word in re.findall(r"(?:better|worse) by [\d.]+", text)]
    assert differences == [40.0, -5.0, -15.0] and sum(differences) == pytest.approx(100 * (0.55 - 0.35))
    assert "More crops: k-NN 75.00% against 35.00%" in text and steps_to_multicrop({"rows": rows[:3]}) == ""


def sign(words: str) -> float:
    return float(words.split()[-1]) * (1 if words.startswith("better") else -1)


@pytest.mark.parametrize("study", STUDIES)
def test_the_choices_about_small_crops_have_the_recipes_images(study):
    methods = {method.name: method for method in choices(methods_of(RECIPES / study))}
    crops = {
        name: load_config([str(method.recipe), "data.path=.", *method.settings]).crops
        for name, method in methods.items()
    }
    base, large = crops[BASE].local, crops[LARGE]
    assert crops[NONE].local.count == 0
    assert crops[WHOLE].local == {**base, "scale": large["global"].scale}
    assert large.local == {**crops[WHOLE].local, "size": large["global"].size} and large.local.count == base.count
    assert all(methods[name].images_of == BASE for name in (NONE, WHOLE, LARGE, "norm"))


@pytest.mark.parametrize("study", STUDIES)
def test_the_vit_among_the_choices_takes_all_sizes_of_the_study(study):
    vit, teacher = (method for method in choices(methods_of(RECIPES / study)) if method.name in ("vit", "teacher"))
    config = load_config([str(vit.recipe), "data.path=.", "model.prototypes=10", "model.heads=1", *vit.settings])
    network = build_network(config.model, [*sizes_of_crops(config.crops), config.evaluation.size])
    assert network.get_submodule("backbone").num_features == 96
    assert teacher.settings == (*vit.settings, "swav.teacher.momentum=0.99") and teacher.against == vit.name


def test_accuracy_is_balanced_over_classes():
    expected = torch.tensor([0, 0, 0, 0, 2, 2])
    assert balanced(torch.tensor([0, 0, 0, 1, 2, 0]), expected) == pytest.approx((0.75 + 0.5) / 2)


def test_a_drawing_is_asked_for_among_those_of_the_other_hands():
    names = [f"test-000000.tar:00001/1f60{n}-{hand}.png" for n in range(3) for hand in ("noto", "twemoji")]
    names.append("test-000000.tar:00009/1f1e6-1f1e8-fluent.png")  # no other hand draws it
    symbols = torch.eye(4)
    features = torch.stack([*symbols[[0, 0, 1, 1, 2, 0]], symbols[3]])
    # 2 by twemoji looks like 0: its nearest by another hand is 0 by noto, and 2 by noto finds nothing like itself
    assert across_hands(features, names) == pytest.approx(4 / 6)
    assert across_hands(features, ["train-000000.tar:cat.png", *names[1:]]) is None


def test_a_search_splits_the_training_images_alone_and_parts_no_group(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (120, 8, 8), np.uint8)
    records = [(f"{n // 3:05d}/{n}", stored_png(pixels[n]), "png", n % 2) for n in range(120)]
    train, test = pack(records[:90], tmp_path / "train", "train"), pack(records[90:], tmp_path / "test", "test")
    pack_for_search(labelled_data(train, test), tmp_path / "split")
    parts = {part: SampleTable.load(tmp_path / "split" / part / "table.npz") for part in ("train", "test")}
    digests = {part: {bytes(Reader(t).read([row])[0]) for row in range(len(t))} for part, t in parts.items()}
    assert not digests["train"] & digests["test"] and len(digests["train"] | digests["test"]) == 90
    assert digests["train"] | digests["test"] == {data for _, data, _, _ in records[:90]}
    groups = {data: key.split("/")[0] for key, data, _, _ in records}
    assert not {groups[data] for data in digests["train"]} & {groups[data] for data in digests["test"]}
    assert 0 < len(digests["test"]) < 45


def test_batch_norm_over_fewer_images_trains_with_four_processes_on_one_core(tmp_path):
    methods = {method.name: method for method in choices(methods_of(RECIPES / "fashion-mnist"))}
    setup = Setup(tmp_path, tmp_path, [0])
    one, four = (training(methods[name], 1, 2, 9.0, setup, tmp_path, tmp_path).command for name in (BASE, "norm"))
    assert one[0] == "train.py"
    assert four[:4] == ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4") and four[4:] == one
