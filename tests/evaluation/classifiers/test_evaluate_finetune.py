"""Fine-tuning on a part of the labels, and on other images."""

import numpy as np
import pytest
import torch

from config.recipe import ROOT
from evaluation.classifiers import finetune, tuning
from evaluation.classifiers.finetune import factor
from evaluation.classifiers.tuning import short_training_note, steady_rate
from support.evaluations import evaluate, mistake
from support.forks import Script


def arguments(root):
    places = ["--tables", root / "tables", "--cache", root / "features", "--json", root / "r.json"]
    return [*places, "--backend", "torchvision", "--batch", 16]


def test_the_published_steps_and_the_cosine():
    assert [factor("steps", epoch, 20) for epoch in (0, 11, 12, 15, 16, 19)] == pytest.approx(
        [1, 1, 0.2, 0.2, 0.04, 0.04]
    )
    assert [factor("cosine", epoch, 4) for epoch in (0, 2)] == pytest.approx([1, 0.5])


def test_a_fraction_of_each_class_is_learned_from(tmp_path, run, data, capsys):
    words = [run, data, "--fraction", 0.5, "--lr", 0.1, "--head-lr", 4, "--epochs", 8, *arguments(tmp_path)]
    output = evaluate(capsys, *words, command="semisup")
    assert output["data"]["train_images"] == 45
    assert output["results"][0]["semisup top1"] > 0.45  # a guess is a third
    assert "curves" not in output["results"][0]


def test_rates_are_the_published_ones_for_a_tenth(tmp_path, run, data, capsys):
    (tmp_path / "list").write_text("".join(f"{i:05d}\n" for i in range(18)))
    words = [run, data, "--train-list", tmp_path / "list", "--epochs", 1, *arguments(tmp_path)]
    output = evaluate(capsys, *words, command="semisup")
    assert (output["settings"]["lr"], output["settings"]["head_lr"]) == (0.01, 0.2)
    assert output["data"]["train_images"] == 18
    line = mistake(capsys, run, data, "--fraction", 0.3, command="semisup")
    assert "--fraction=0.3: published rates exist for 0.1 and 0.01 only; give --lr and --head-lr" in line


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_a_linear_classifier_is_stable_at_the_rate_computed_from_its_features(classes):
    """With positive features, as after pooling, the loss falls at every step; at ten times the rate it does not."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(600) % classes
    features = (
        1 + 0.3 * torch.randn(classes, 32, generator=generator)[labels] + torch.randn(600, 32, generator=generator)
    )
    features = features.relu()

    def losses(rate, steps=40):
        head = torch.nn.Linear(32, classes)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
        seen = []
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen

    rate = steady_rate(float(features.square().sum(1).mean()), classes)
    assert max(losses(rate)) == pytest.approx(np.log(classes))  # the first step's
    assert max(losses(10 * rate)) > 1.5 * np.log(classes)


def test_a_published_head_rate_is_lowered_to_a_stable_one_and_a_given_rate_is_not(
    tmp_path, run, data, capsys, monkeypatch
):
    monkeypatch.setattr(tuning, "steady_rate", lambda length, classes: 0.001 * classes)
    (tmp_path / "list").write_text("".join(f"{i:05d}\n" for i in range(32)))
    words = [run, data, "--train-list", tmp_path / "list", "--epochs", 1, *arguments(tmp_path), "--fraction", 0.01]
    output = evaluate(capsys, *words, command="semisup")
    assert output["results"][0]["head lr"] == pytest.approx(0.003 * 256 / 16)
    assert "auto: --head-lr=0.048  (a classifier on these features would diverge at the published 5" in output["text"]
    given = evaluate(capsys, *words, "--head-lr", 5, command="semisup")
    assert "head lr" not in given["results"][0] and "auto" not in given["text"]


def test_a_training_of_few_steps_gets_a_note():
    assert short_training_note(1000, 256) is None and "40 steps of 256 images" in short_training_note(40, 256)


def test_an_interrupted_training_resumes_to_the_same_result(tmp_path, run, data, capsys, monkeypatch):
    words = [run, data, "--fraction", 0.5, "--lr", 0.1, "--head-lr", 1, "--epochs", 3, "--best", *arguments(tmp_path)]
    whole = evaluate(capsys, *words, command="semisup")["results"][0]
    saved = finetune.save_progress

    def save_and_die(path, network, optimizer, curves):
        saved(path, network, optimizer, curves)
        if len(curves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "save_progress", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(capsys, *words, command="semisup")
    monkeypatch.setattr(finetune, "save_progress", saved)
    again = evaluate(capsys, *words, command="semisup")["results"][0]
    assert again["curves"] == whole["curves"]
    assert again["best epoch's semisup top1"] == max(whole["curves"]["semisup top1"])


def test_fine_tuning_does_not_change_the_backbone(tmp_path, run, data, capsys):
    words = [run, data, "--finetune", "--epochs", 1, *arguments(tmp_path)]
    result = evaluate(capsys, *words, "--peers", run, command="transfer")["results"]
    assert result[0]["weights"] == result[1]["weights"]
    assert result[0]["fine-tuned top1"] == result[1]["fine-tuned top1"]
    assert {"k-NN top1", "linear top1", "fine-tuned top1"} <= set(result[0])


def test_transfer_takes_a_list(tmp_path, run, data, capsys):
    (tmp_path / "list").write_text("".join(f"class{i % 3}/{i:05d}.png\n" for i in range(30)))
    words = [run, data, "--train-list", tmp_path / "list", *arguments(tmp_path)]
    output = evaluate(capsys, *words, command="transfer")
    assert output["data"]["train_images"] == 30
    assert "fine-tuned top1" not in output["results"][0]


def test_two_processes_fine_tune_together(tmp_path, run, data):
    words = ["semisup", run, data, "--fraction", 0.5, "--lr", 0.1, "--head-lr", 1, "--epochs", 2, *arguments(tmp_path)]
    process = Script(ROOT / "evaluate.py", map(str, words), tmp_path / "output", ranks=2)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    assert (tmp_path / "r.json").is_file()
    assert "semisup top1" in output


def test_wrong_rates_are_one_line(run, data, capsys):
    assert "--scale=0 1: expected two shares" in mistake(capsys, run, data, "--scale", 0, 1, command="semisup")
    assert "--lr=-1.0: expected a number, 0 or more" in mistake(capsys, run, data, "--lr", -1, command="semisup")
    assert "--epochs=0" in mistake(capsys, run, data, "--finetune", "--epochs", 0, command="transfer")
