"""Linear classifiers on frozen features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evaluation.classifiers import linear
from evaluation.classifiers.linear import cosine
from evaluation.classifiers.logistic import LEAST, chosen_penalty, edge_note, logistic_regression
from support.evaluations import evaluate, mistake


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
    predicted = (torch.from_numpy(points).double() @ weights.T + bias).argmax(1).numpy()
    assert (predicted == theirs.predict(points)).all()


def test_the_rate_falls_as_a_cosine_by_epochs():
    assert [round(cosine(0.3, epoch, 4), 6) for epoch in range(4)] == [0.3, 0.256066, 0.15, 0.043934]


def test_one_pass_over_two_rates_is_two_passes_over_one(tmp_path, run, data, capsys):
    both = evaluate(capsys, run, data, "--epochs", 2, "--lr", "0.5,3", *arguments(tmp_path), command="linear")
    one = evaluate(capsys, run, data, "--epochs", 2, "--lr", "0.5", *arguments(tmp_path), command="linear")
    curves = both["results"][0]["curves"]
    assert curves["lr=0.5"] == one["results"][0]["curves"]["lr=0.5"]
    assert both["results"][0]["linear top1"]["lr=3"] == curves["lr=3"][-1]
    assert "best epoch's top1" not in both["results"][0]


def test_an_interrupted_training_resumes_to_the_same_result(tmp_path, run, data, capsys, monkeypatch):
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
    output = evaluate(capsys, run, data, "--cached", *arguments(tmp_path), command="linear")
    assert output["results"][0]["linear top1"] > 0.5  # a guess is a third


def test_the_search_for_a_penalty_goes_beyond_the_first_candidates():
    """With many weak features and few points the first candidates are too small, and the search finds a larger one."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 100)
    points = torch.from_numpy(generator.normal(size=(100, 60)) + 0.35 * labels[:, None])
    penalty = chosen_penalty(points, torch.from_numpy(labels), [1e-6, 1e-5])
    assert penalty > 1e-3
    assert chosen_penalty(points, torch.from_numpy(labels), [penalty / 10, penalty, 10 * penalty]) == penalty


def test_a_penalty_at_the_edge_of_the_range_gets_a_note():
    assert edge_note(1e-3) is None and "is at the edge" in edge_note(LEAST)


def test_training_crops_have_the_given_scale(tmp_path, run, data, capsys):
    words = [run, data, "--epochs", 4, "--lr", "0.5,2", "--bn", *arguments(tmp_path)]
    protocol = evaluate(capsys, *words, command="linear")
    asked = evaluate(capsys, *words, "--scale", 0.08, 1, command="linear")
    whole = evaluate(capsys, *words, "--scale", 1, 1, command="linear")
    assert asked["results"][0]["curves"] == protocol["results"][0]["curves"] != whole["results"][0]["curves"]
    assert whole["settings"]["scale"] == [1, 1]


def test_the_rate_follows_the_number_of_images_in_the_batch(tmp_path, run, data, capsys):
    words = [run, data, "--epochs", 3, "--lr", "0.5,2", "--bn", *arguments(tmp_path)]
    larger = evaluate(capsys, *words, "--batch", 512, command="linear")
    equal = evaluate(capsys, *words, "--batch", 90, command="linear")
    assert larger["results"][0]["curves"] == equal["results"][0]["curves"]


def test_wrong_numbers_are_one_line(run, data, capsys):
    assert "--lr=x: expected" in mistake(capsys, run, data, "--lr", "x", command="linear")
    assert "--epochs=0" in mistake(capsys, run, data, "--epochs", 0, command="linear")
    assert "--scale=0.5 0.2: expected" in mistake(capsys, run, data, "--scale", 0.5, 0.2, command="linear")
