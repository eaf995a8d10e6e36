"""Few labeled images, and several seeds: against scikit-learn's classifier and scipy's interval."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from evaluation.command import table
from evaluation.repeats import half_width, merged, student_quantile
from evaluation.subsets import of_each_class
from support.evaluations import evaluate, mistake


def arguments(root):
    places = ["--tables", root / "tables", "--cache", root / "features", "--json", root / "r.json"]
    return [*places, "--backend", "torchvision", "--batch", 30]


def cached(root, title):
    """Features of a split out of the cache, by their number of rows."""
    parts = [np.load(path)["features"] for path in sorted(root.glob("features/*/part-00000.npz"))]
    (found,) = [part for part in parts if len(part) == title]
    return found.astype(np.float64) / np.linalg.norm(found, axis=1, keepdims=True)


def test_each_draw_is_scikit_learns_accuracy_and_the_interval_is_scipys(tmp_path, run, data, capsys):
    words = [run, data, "--shots", "1,4", "--draws", 3, "--seed", 5, *arguments(tmp_path)]
    result = evaluate(capsys, *words, command="fewshot")["results"][0]
    train, test = cached(tmp_path, 90), cached(tmp_path, 30)
    labels, expected = np.arange(90) % 3, np.arange(30) % 3
    if not np.array_equal(np.sort(labels), labels):  # folders are read class by class
        labels, expected = np.sort(labels), np.sort(expected)
    for place, count in enumerate((1, 4)):
        scores = []
        for draw in range(3):
            rows = of_each_class(labels, count, 5, draw)
            theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(train[rows], labels[rows])
            scores.append((theirs.predict(test) == expected).mean())
        ours = result["draws of few-shot top1"][place]
        assert ours["images"] == count and ours["each"] == pytest.approx(scores)
        low, high = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
        assert result["few-shot top1"][f"{count} images"] == pytest.approx(np.mean(scores))
        assert result["few-shot top1"][f"{count} images ±"] == pytest.approx((high - low) / 2, rel=1e-4, abs=1e-12)


def test_uneven_classes_also_have_the_mean_of_their_accuracies(tmp_path, run, data, capsys):
    names = sorted(str(path.relative_to(data / "val")) for path in (data / "val").rglob("*.*"))
    (tmp_path / "list.txt").write_text("\n".join(names[:10] + names[10:14] + names[20:23]) + "\n")
    words = [run, data, "--shots", 5, "--draws", 1, "--test-list", tmp_path / "list.txt", *arguments(tmp_path)]
    result = evaluate(capsys, *words, command="fewshot")["results"][0]
    train, test = cached(tmp_path, 90), cached(tmp_path, 17)
    labels, expected = np.repeat(np.arange(3), 30), np.repeat(np.arange(3), (10, 4, 3))
    rows = of_each_class(labels, 5, 31, 0)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(train[rows], labels[rows]).predict(test)
    assert result["few-shot top1 by class"]["5 images"] == pytest.approx(balanced_accuracy_score(expected, theirs))
    assert not any("±" in name for name in result["few-shot top1"])


def test_draws_are_of_each_class_nested_and_different():
    label = np.repeat([0, 3, -1, 7], (40, 40, 40, 3))
    few, more = of_each_class(label, 1, 31, 0), of_each_class(label, 5, 31, 0)
    assert set(few) < set(more) and (np.diff(more) > 0).all()
    assert np.unique(label[more], return_counts=True)[1].tolist() == [5, 5, 3]
    assert (of_each_class(label, 5, 31, 0) == more).all()
    assert not np.array_equal(of_each_class(label, 5, 31, 1), more)
    assert not np.array_equal(of_each_class(label, 5, 32, 0), more)
    counts = np.bincount(np.concatenate([of_each_class(label, 5, 31, draw) for draw in range(400)]), minlength=40)[:40]
    assert stats.chisquare(counts).pvalue > 1e-3, "every image is as likely as any other"


@pytest.mark.parametrize("freedom", [1, 2, 5, 9, 10, 20, 100])
def test_the_quantile_is_scipys(freedom):
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)


def test_an_interval_stands_behind_its_figure_and_many_figures_become_rows():
    figures = {"few-shot top1": {"1 images": 0.5, "1 images ±": 0.0123}, "seconds": 2.0}
    data = {"path": "x", "classes": 3}
    few = table({"command": "fewshot", "data": data, "results": [{"backbone": "runs/demo"} | figures]})
    assert "50.00% ± 1.23%" in few and few.count("±") == 1
    many = {f"k={k}": {"top1": k / 10} for k in range(9)}
    rows = table({"command": "knn", "data": data, "results": [{"backbone": name} | many for name in ("a", "b")]})
    assert [len(line.split("│")) for line in rows.splitlines() if "k=" in line] == [5] * 9
    assert next(line for line in rows.splitlines() if "k=7" in line).count("70.00%") == 2


def test_seeds_are_merged_to_mean_and_interval():
    whole = merged([{"a": {"x": 1.0}, "c": [1, 2], "t": "w", "n": 3}, {"a": {"x": 2.0}, "c": [3, 4], "t": "v", "n": 3}])
    low, high = stats.t.interval(0.95, 1, 1.5, stats.sem([1, 2]))
    assert whole["a"] == {"x": 1.5, "x ±": pytest.approx((high - low) / 2, rel=1e-4)} and whole["c"] == [2, 3]
    assert whole["t"] == "w" and whole["n ±"] == 0 and len(whole["by seed"]) == 2
    assert merged([{"a": 1}]) == {"a": 1} and np.isnan(half_width([1.0]))


def test_linear_with_several_seeds_is_the_mean_of_runs_with_one(tmp_path, run, data, capsys):
    words = [run, data, "--peers", "random", "--epochs", 2, "--lr", "3", *arguments(tmp_path)]
    both = evaluate(capsys, *words, "--seeds", 2, "--seed", 7, command="linear")
    ones = [evaluate(capsys, *words, "--seed", seed, command="linear") for seed in (7, 8)]
    for place in (0, 1):  # the random peer has other weights with each seed
        scores = [one["results"][place]["linear top1"]["lr=3"] for one in ones]
        top1 = both["results"][place]["linear top1"]
        assert top1["lr=3"] == pytest.approx(np.mean(scores))
        assert top1["lr=3 ±"] == pytest.approx(half_width(scores))
        assert [one["linear top1"]["lr=3"] for one in both["results"][place]["by seed"]] == scores
    assert both["settings"]["seed"] == 7 and "±" in both["text"]


def test_wrong_numbers_of_shots_draws_and_seeds_are_one_line(run, data, capsys):
    assert "--shots=0" in mistake(capsys, run, data, "--shots", 0, command="fewshot")
    assert "--draws=0" in mistake(capsys, run, data, "--draws", 0, command="fewshot")
    assert "--seeds=0" in mistake(capsys, run, data, "--seeds", 0, command="linear")
