"""Linear classifiers on frozen features."""

import numpy as np
import pytest
import torch
from evaluations import evaluate, mistake, small_dataset, small_run
from sklearn.linear_model import LogisticRegression

from evaluation import linear
from evaluation.linear import cosine
from evaluation.logistic import logistic_regression


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    return small_run(tmp_path_factory.mktemp("runs") / "run", data)


def arguments(root):
    places = ["--tables", root / "tables", "--cache", root / "features", "--json", root / "r.json"]
    return [*places, "--backend", "torchvision", "--batch", 30]


def test_logistic_regression_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 300)
    points = (generator.normal(size=(4, 6))[labels] + generator.normal(size=(300, 6))).astype(np.float32)
    theirs = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(points.astype(np.float64), labels)
    weights, bias = logistic_regression(torch.from_numpy(points), torch.from_numpy(labels), 1 / (0.5 * 300))
    np.testing.assert_allclose(weights.numpy(), theirs.coef_, atol=2e-4)
    found = (torch.from_numpy(points).double() @ weights.T + bias).argmax(1).numpy()
    assert (found == theirs.predict(points)).all()


def test_the_rate_falls_as_a_cosine_by_epochs():
    assert [round(cosine(0.3, epoch, 4), 6) for epoch in range(4)] == [0.3, 0.256066, 0.15, 0.043934]


def test_one_pass_over_two_rates_is_two_passes_over_one(tmp_path, run, data, capsys):
    both = evaluate(capsys, run, data, "--epochs", 2, "--lr", "0.5,3", *arguments(tmp_path), command="linear")
    one = evaluate(capsys, run, data, "--epochs", 2, "--lr", "0.5", *arguments(tmp_path), command="linear")
    curves = both["results"][0]["curves"]
    assert curves["lr=0.5"] == one["results"][0]["curves"]["lr=0.5"]
    assert both["results"][0]["linear top1"]["lr=3"] == curves["lr=3"][-1]
    assert "best epoch's top1" not in both["results"][0]


def test_what_was_interrupted_ends_as_if_it_had_not_been(tmp_path, run, data, capsys, monkeypatch):
    words = [run, data, "--epochs", 3, "--lr", "2", "--bn", "--best", *arguments(tmp_path)]
    whole = evaluate(capsys, *words, command="linear")["results"][0]
    saved = linear.save_progress

    def save_and_die(path, heads, optimizer, curves):
        saved(path, heads, optimizer, curves)
        if len(curves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(linear, "save_progress", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(capsys, *words, command="linear")
    monkeypatch.setattr(linear, "save_progress", saved)
    assert len(list((tmp_path / "features").glob("linear-*"))) == 1
    again = evaluate(capsys, *words, command="linear")["results"][0]
    assert again["curves"] == whole["curves"]
    assert again["best epoch's top1"]["lr=2"] == max(whole["curves"]["lr=2"])
    assert not list((tmp_path / "features").glob("linear-*"))


def test_cached_features_learn_the_classes(tmp_path, run, data, capsys):
    found = evaluate(capsys, run, data, "--cached", *arguments(tmp_path), command="linear")
    assert found["results"][0]["linear top1"] > 0.5  # a guess is a third


def test_wrong_numbers_are_one_line(run, data, capsys):
    assert "--lr=x: expected" in mistake(capsys, run, data, "--lr", "x", command="linear")
    assert "--epochs=0" in mistake(capsys, run, data, "--epochs", 0, command="linear")
