"""The whole run as a user starts it: kills, signals, launchers, and what is left behind."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from config.recipe import ROOT, load_config
from pipeline.conversion.rewrite import Options
from pipeline.convert import convert
from support.tiny_runs import kill, losses, make_workplace, train, wait_for_step
from training.build import build_network
from training.trained_network import full_weights

STEPS = 24  # 3 epochs of 68 // 8


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def undisturbed(workplace):
    """An uninterrupted run on one process, started as a user does: its output and losses."""
    output = train(workplace, "undisturbed", launcher=[sys.executable])
    return output, losses(workplace, "undisturbed")


@pytest.mark.slow(seconds=3)
def test_a_run_leaves_its_summary_settings_versions_metrics_and_checkpoints(workplace, undisturbed):
    output, run = undisturbed[0], workplace / "undisturbed"
    summary = json.loads((run / "summary.json").read_text())
    for key in ("knn", "knn_random_init", "knn_raw_pixels", "prototypes_in_use"):
        assert 0 <= summary[key] <= 1
    assert summary["knn"] > 0.9  # bright and dark noise are easy to tell apart
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 0
    assert summary["versions"]["torch"].startswith("2.")
    assert "k-NN accuracy, trained backbone" in output
    assert (run / "config.yaml").exists()
    saved = json.loads((run / "versions.json").read_text())
    assert saved["swave"] == "0.1.0" and saved == summary["versions"]
    assert list((run / "tensorboard").glob("events.*"))
    assert sorted(losses(workplace, "undisturbed")) == list(range(1, STEPS + 1))
    assert (run / "checkpoints" / "latest").read_text() == "step-000000024\n"
    assert len(list((run / "checkpoints").glob("step-*"))) == 2


def test_the_learning_curve_of_a_run_is_drawn(workplace, undisturbed, tmp_path):
    command = [
        sys.executable,
        "-m",
        "evaluation.curve",
        str(workplace / "undisturbed"),
        "--out",
        str(tmp_path / "c.png"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60, capture_output=True)
    assert Image.open(tmp_path / "c.png").size[0] > 800


def test_starting_a_finished_run_again_prints_its_result_and_trains_nothing(workplace, undisturbed):
    before = (workplace / "undisturbed" / "summary.json").read_text()
    output = train(workplace, "undisturbed")
    assert "is done" in output
    assert "k-NN accuracy" in output
    assert (workplace / "undisturbed" / "summary.json").read_text() == before


def train_with_kills(workplace, name, kills, *settings):
    """A run that is killed at `kills` random steps and then ends; the output of its last start."""
    chance = random.Random(3)
    for step in sorted(chance.sample(range(2, STEPS - 1), kills)):
        process = train(workplace, name, *settings, wait=False)
        wait_for_step(workplace, name, step, process)
        time.sleep(chance.random() * 0.05)  # also in the middle of a step or a checkpoint
        kill(process)
    return train(workplace, name, *settings)


@pytest.mark.slow
def test_a_run_killed_at_random_steps_gives_the_same_losses_bit_for_bit(workplace, undisturbed):
    output = train_with_kills(workplace, "killed", 4)
    assert "resuming from" in output
    assert losses(workplace, "killed") == undisturbed[1]
    one, other = (json.loads((workplace / name / "summary.json").read_text()) for name in ("killed", "undisturbed"))
    assert one["knn"] == other["knn"]
    for key in ("mean_loss", "code_entropy", "prototypes_in_use", "embedding_std"):  # of the whole last epoch
        assert one[key] == pytest.approx(other[key], rel=1e-12)


@pytest.mark.slow
def test_a_run_of_ffcv_from_a_beton_killed_at_random_steps_gives_the_same_losses(workplace):
    convert(workplace / "images", workplace / "images.beton", Options("beton"), progress=False)
    settings = (f"data.path={workplace / 'images.beton'}", "pipeline.backend=ffcv")
    train(workplace, "ffcv", *settings)
    assert "resuming from" in train_with_kills(workplace, "ffcv-killed", 2, *settings)
    assert losses(workplace, "ffcv-killed") == losses(workplace, "ffcv")
    assert json.loads((workplace / "ffcv" / "summary.json").read_text())["knn"] > 0.9


def test_a_kill_between_the_last_step_and_the_summary_loses_only_the_summary(workplace, undisturbed):
    shutil.copytree(workplace / "undisturbed", workplace / "late")
    before = json.loads((workplace / "late" / "summary.json").read_text())
    (workplace / "late" / "summary.json").unlink()
    train(workplace, "late")
    after = json.loads((workplace / "late" / "summary.json").read_text())
    for key in ("knn", "knn_random_init", "prototypes_in_use", "mean_loss", "steps"):
        assert after[key] == before[key]
    assert after["images_per_second"] == pytest.approx(before["images_per_second"], rel=0.1)  # of the whole training


@pytest.mark.slow
def test_two_processes_killed_and_restarted_give_the_same_losses_bit_for_bit(workplace):
    train(workplace, "two", ranks=2)
    process = train(workplace, "two-killed", ranks=2, wait=False)
    wait_for_step(workplace, "two-killed", 11, process)
    kill(process)
    train(workplace, "two-killed", ranks=2)
    assert losses(workplace, "two-killed") == losses(workplace, "two")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_ends_with_0_and_says_how_to_resume(workplace, number):
    name, longer = f"signal-{number}", "run.epochs=12"  # the signal may come late
    process = train(workplace, name, "checkpoint.every=never", longer, wait=False)
    wait_for_step(workplace, name, 5, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "the same command resumes" in output
    assert not (workplace / name / "summary.json").exists()
    saved = (workplace / name / "checkpoints" / "latest").read_text().strip()
    assert int(saved.removeprefix("step-")) == max(losses(workplace, name))
    if number == signal.SIGTERM:  # the checkpoint does not depend on the signal
        train(workplace, name, longer)
        train(workplace, "no-signal", longer)
        assert losses(workplace, name) == losses(workplace, "no-signal")


@pytest.mark.slow
def test_the_same_run_starts_under_every_launcher(workplace, undisturbed):
    """deepspeed, srun's environment and torchrun on two processes give the same losses; one process starts alone."""
    train(
        workplace,
        "torchrun",
        launcher=[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    )
    deepspeed = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", free_port()]
    train(workplace, "deepspeed", launcher=deepspeed)
    port = free_port()
    tasks = [
        train(
            workplace,
            "srun",
            wait=False,
            environment={
                "SLURM_PROCID": str(rank),
                "SLURM_NTASKS": "2",
                "SLURM_LOCALID": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(2)
    ]
    outputs = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert outputs[1].strip() == "", "only rank 0 speaks"
    assert losses(workplace, "torchrun") == losses(workplace, "deepspeed") == losses(workplace, "srun")


def free_port():
    from training.distributed import free_port

    return str(free_port())


@pytest.mark.slow
def test_start_passes_a_signal_on_to_all_processes(workplace):
    command = [sys.executable, "-m", "launch.start", "--processes", "2", str(workplace / "tiny.yaml")]
    process = subprocess.Popen(
        [*command, f"run.directory={workplace / 'start'}", "run.epochs=200"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_step(workplace, "start", 3, process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "the same command resumes" in output


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_losses(workplace):
    short = ("run.epochs=1", "model.options.layers=[1]")
    train(workplace, "compiled", "engine.compile=true", *short)
    train(workplace, "eager", *short)
    compiled, eager = losses(workplace, "compiled"), losses(workplace, "eager")
    for step in range(1, 7):
        assert compiled[step] == pytest.approx(eager[step], rel=1e-5)


def test_another_recipe_in_the_same_directory_is_refused(workplace, undisturbed):
    process = train(workplace, "undisturbed", "optimizer.base_lr=0.7", wait=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "holds a run with other settings (optimizer.base_lr: 0.5 -> 0.7); choose another run.directory" in output


def test_a_run_whose_images_changed_is_not_resumed(workplace, undisturbed, tmp_path):
    shutil.copytree(workplace / "undisturbed", workplace / "fewer")
    (workplace / "fewer" / "summary.json").unlink()
    shutil.copytree(workplace / "images", tmp_path / "images")
    next((tmp_path / "images" / "class0").iterdir()).unlink()
    process = train(workplace, "fewer", f"data.path={tmp_path / 'images'}", wait=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "has 67 usable images, the run in" in output.strip().splitlines()[-1]


def test_a_finished_run_goes_on_when_it_is_given_more_epochs(workplace, undisturbed):
    shutil.copytree(workplace / "undisturbed", workplace / "longer")
    output = train(workplace, "longer", "run.epochs=4")
    assert "changed since the last checkpoint: run.epochs: 3 -> 4" in output
    assert max(losses(workplace, "longer")) == STEPS + 8
    assert json.loads((workplace / "longer" / "summary-3-epochs.json").read_text())["epochs"] == 3
    assert json.loads((workplace / "longer" / "summary.json").read_text())["epochs"] == 4


@pytest.mark.slow
def test_a_backbone_is_frozen_for_its_epochs_to_the_bit_and_a_kill_changes_nothing(workplace):
    settings = ("model.freeze_backbone_epochs=1", "optimizer.backbone_lr_scale=0.3", "checkpoint.keep=99")
    train(workplace, "frozen", *settings)
    start, *later = (backbone_of(workplace / "frozen/checkpoints" / f"step-{step:09d}") for step in (2, 8, 10))
    assert [all(torch.equal(start[name], one[name]) for name in start) for one in later] == [True, False]
    for step in (5, 11):  # the first while it is frozen
        process = train(workplace, f"frozen{step}", *settings, wait=False)
        wait_for_step(workplace, f"frozen{step}", step, process)
        kill(process)
        assert "resuming from" in train(workplace, f"frozen{step}", *settings)
        assert losses(workplace, f"frozen{step}") == losses(workplace, "frozen")


def backbone_of(checkpoint):
    weights = full_weights(checkpoint)
    return {
        name: value
        for name, value in weights.items()
        if name.startswith("backbone.") and value.ndim and ("running" not in name)
    }


AUTO = ("swav.freeze_prototypes=auto", "swav.queue.start_epoch=auto", "optimizer.base_lr=auto", "pipeline.threads=auto")


@pytest.mark.slow(seconds=3)
def test_what_auto_chose_stays_chosen_when_a_run_goes_on(workplace, tmp_path):
    """For more epochs, from weights whose file is gone by then; fewer epochs than are done are one line."""
    weights = tmp_path / "start.safetensors"
    model = load_config([str(workplace / "tiny.yaml")]).model
    save_file(build_network({**model, "heads": 1}).state_dict(), weights)
    words = (*AUTO, f"model.weights={weights}", "checkpoint.every=1 epoch")
    train(workplace, "auto", *words, "run.epochs=2")
    weights.unlink()
    text = train(workplace, "auto", *words, "run.epochs=3")
    assert "changed since the last checkpoint: run.epochs: 2 -> 3" in text
    assert "auto: swav.freeze_prototypes=0  (the run has begun with it)" in text  # 1 for 3 epochs
    for epochs in (1, 2):
        fewer = train(workplace, "auto", *words, f"run.epochs={epochs}", wait=False)
        text, _ = fewer.communicate(timeout=300)
        assert fewer.returncode == 2
        assert f"run.epochs={epochs}: the run in {workplace / 'auto'} has already done" in text.splitlines()[-1]


def test_a_finished_run_of_more_epochs_says_so(workplace, undisturbed):
    process = train(workplace, "undisturbed", "run.epochs=2", wait=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    line = f"run.epochs=2: the run in {workplace / 'undisturbed'} has already done 3 epochs; give 3 or more, or"
    assert line in output.splitlines()[-1]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_checkpoint(workplace):
    process = train(workplace, "hot", "optimizer.base_lr=1e30", "checkpoint.every=1 step", wait=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith("swave: step ")
    assert "last good checkpoint: " in last
    assert not (workplace / "hot" / "summary.json").exists()


def test_weights_that_are_not_there_are_an_error(workplace):
    process = train(workplace, "weights", "model.weights=/nowhere/resnet.pth", wait=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "/nowhere/resnet.pth" in output.strip().splitlines()[-1]
