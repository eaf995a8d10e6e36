"""Whole runs with teacher and online probe: checkpoints, several processes, ZeRO stages."""

import json
import math
import shutil

import pytest
import torch

from evaluation.backbones import open_backbone
from support.tiny_runs import interrupted, losses, make_workplace
from support.tiny_runs import train as run_train
from training.checkpoint.save_load import CheckpointError, latest_checkpoint
from training.trained_network import full_weights

SETTINGS = (
    *("swav.teacher.momentum=0.7", "evaluation.probe=true", "evaluation.every=1", "engine.sync_batch_norm=0"),
    *("run.epochs=2", "checkpoint={every: 3 steps, keep: 9}", "pipeline.backend=torchvision"),
)
STEPS = 8  # an epoch of 68 // 8


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("run"))


def train(workplace, name, *settings, ranks=1):
    return run_train(workplace, name, *SETTINGS, *settings, ranks=ranks)


def refusal(workplace, *settings):
    """Start a run that is refused; the last line of its output."""
    process = run_train(workplace, "refused", *SETTINGS, *settings, wait=False)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert not (workplace / "refused" / "metrics.jsonl").exists()
    return output.strip().splitlines()[-1]


def lines(workplace, name):
    return [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]


def last_files(workplace, name):
    """The bytes of all tensors of a run's last checkpoint."""
    folder = latest_checkpoint(workplace / name / "checkpoints")
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def two(workplace):
    """A whole run on two processes at stage 1."""
    train(workplace, "two", "engine.stage=1", ranks=2)
    return losses(workplace, "two")


@pytest.mark.slow(seconds=5)
def test_a_resumed_run_ends_with_the_same_teacher_and_probe_bit_for_bit(workplace, two):
    interrupted(workplace, "two", "resumed", 6)
    assert "resuming from" in train(workplace, "resumed", "engine.stage=1", ranks=2)
    assert losses(workplace, "resumed") == two
    assert last_files(workplace, "resumed") == last_files(workplace, "two")
    one, other = (json.loads((workplace / name / "summary.json").read_text()) for name in ("two", "resumed"))
    for key in ("knn", "knn_teacher", "probe", "probe_train"):
        assert 0 < one[key] == other[key] <= 1


@pytest.mark.slow(seconds=3)
def test_the_probes_accuracies_are_in_the_metrics_and_the_summary(workplace, two):
    """Bright and dark noise are easy to tell apart, so the probe is accurate."""
    summary = json.loads((workplace / "two" / "summary.json").read_text())
    assert summary["probe"] > 0.9
    by_epoch = [line for line in lines(workplace, "two") if "probe_train" in line]
    assert [line["epoch"] for line in by_epoch] == [0, 1]
    assert by_epoch[-1]["probe_train"] == summary["probe_train"] > 0.6
    assert [line["epoch"] for line in lines(workplace, "two") if "probe" in line and "knn" in line] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_stages_0_to_2_average_the_same_teacher(workplace, two, stage):
    name = f"stage-{stage}"
    train(workplace, name, f"engine.stage={stage}", ranks=2)
    assert losses(workplace, name) == pytest.approx(two, rel=1e-4)
    paths = [workplace / which / "checkpoints" / "step-000000006" for which in ("two", name)]
    base, other = (full_weights(path, teacher=True) for path in paths)
    start = full_weights(paths[0].with_name("step-000000003"), teacher=True)
    for key, values in base.items():
        if key != "projection_head.0.bias":  # batch norm follows it, so rounding alone gives it a gradient
            torch.testing.assert_close(other[key], values, rtol=1e-3, atol=1e-4)
    moved = (base["backbone.conv1.weight"] - start["backbone.conv1.weight"]).abs().max()
    assert moved > 3e-4  # more than the tolerance above


@pytest.mark.slow
def test_another_number_of_processes_goes_on_from_the_same_teacher(workplace, two):
    interrupted(workplace, "two", "one", 6)
    train(workplace, "one")
    assert losses(workplace, "one")[7] == pytest.approx(two[7], rel=1e-4)


def test_the_teacher_of_a_checkpoint_is_a_network_between_the_first_and_the_last(workplace, two):
    checkpoint = latest_checkpoint(workplace / "two" / "checkpoints")
    student, teacher = full_weights(checkpoint), full_weights(checkpoint, teacher=True)
    assert {name: value.shape for name, value in teacher.items()} == {n: value.shape for n, value in student.items()}
    assert not torch.equal(teacher["backbone.conv1.weight"], student["backbone.conv1.weight"])
    torch.testing.assert_close(teacher["prototypes.weight"].norm(dim=1), torch.ones(12))
    by_word = open_backbone(f"{workplace / 'two'}@teacher")
    assert torch.equal(by_word.network.conv1.weight, teacher["backbone.conv1.weight"])
    assert by_word.weights != open_backbone(str(workplace / "two")).weights


def test_a_run_without_a_teacher_has_none_and_a_probe_may_come_later(workplace):
    train(workplace, "plain", "swav.teacher.momentum=0", "evaluation.probe=false", "run.epochs=1")
    with pytest.raises(CheckpointError, match="had no teacher"):
        open_backbone(f"{workplace / 'plain'}@teacher")
    assert not any("probe" in line or "probe_train" in line for line in lines(workplace, "plain"))
    before = losses(workplace, "plain")
    output = train(workplace, "plain", "swav.teacher.momentum=0", "run.epochs=2")
    assert "changed since the last checkpoint: evaluation.probe: False -> True" in output
    assert {step: loss for step, loss in losses(workplace, "plain").items() if step <= STEPS} == before
    assert lines(workplace, "plain")[-1]["probe"] > 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine.stage=3"], "swav.teacher.momentum=0.7: expected 0 with engine.stage=3"),
        (["swav.teacher.momentum=1"], "swav.teacher.momentum=1: expected 0 or more and less than 1"),
        (["swav.teacher.final_momentum=0.5"], "swav.teacher.final_momentum=0.5: expected from"),
        (["method=selav2", "swav.queue.length=0"], "swav.teacher.momentum=0.7: it is for method=swav"),
    ],
)
def test_settings_that_do_not_fit_a_teacher_are_an_error_of_one_line(workplace, settings, message):
    assert refusal(workplace, *settings).startswith(f"swave: {message}")


def test_a_probe_without_labels_is_an_error_of_one_line(workplace):
    flat = workplace / "flat"
    flat.mkdir()
    for path in (workplace / "images").rglob("*.*"):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    assert refusal(workplace, f"data.path={flat}").startswith("swave: evaluation.probe=true needs labels")


@pytest.mark.slow
def test_a_teacher_works_in_bf16_with_a_batch_in_parts(workplace):
    settings = ("engine.precision=bf16", "engine.accumulation=2", "run.epochs=1")
    train(workplace, "bf16", *settings)
    assert sorted(losses(workplace, "bf16")) == list(range(1, STEPS + 1))
    assert all(map(math.isfinite, losses(workplace, "bf16").values()))


@pytest.mark.slow
def test_a_compiled_teacher_gives_the_same_losses(workplace):
    short = ("run.epochs=1", "crops.local.count=0", "model.options.layers=[1]")
    train(workplace, "compiled", "engine.compile=true", *short)
    train(workplace, "eager", *short)
    assert losses(workplace, "compiled") == pytest.approx(losses(workplace, "eager"), rel=1e-4)
