"""Checkpoints written by the trainer of commit f605a5d (2 ranks, step 6 of 12) resume to the losses that it went on to.

old_checkpoints/METHOD holds the recipe, the checkpoint, and the losses and epoch figures of the same run's later steps.
"swav" has a full queue and a teacher at ZeRO stage 1, "deepclusterv2" a half-filled memory and an online probe.
"""

import hashlib
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

from support.tiny_runs import train

OLD = Path(__file__).parent / "old_checkpoints"
SAVED_STEP, IMAGES = 6, 36
ELSEWHERE = 1e-3  # another processor or another torch rounds differently, and six steps make more of that
SERIAL = {"OMP_NUM_THREADS": "1"}
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def resume(tmp_path):
    """A function from method and launcher to (losses, epoch figures) of the steps after the saved one."""
    write_images(tmp_path / "images")

    def run(method, launcher=()):
        shutil.copy(OLD / method / "recipe.yaml", tmp_path / "tiny.yaml")
        checkpoints = tmp_path / method / "checkpoints"
        shutil.copytree(OLD / method / "step-000000006", checkpoints / "step-000000006")
        data = [f"data.path={tmp_path}/images", f"data.cache={tmp_path}/tables"]
        output = train(tmp_path, method, *data, launcher=launcher, environment=SERIAL)
        assert f"resuming from {checkpoints}/step-000000006 (step {SAVED_STEP})" in output
        return following_values(tmp_path / method / "metrics.jsonl")

    return run


def write_images(folder):
    """The images of the old runs: bytes of SHAKE-256 as uncompressed pixels, so that every machine writes the same."""
    for index in range(IMAGES):
        noise = hashlib.shake_256(str(index).encode()).digest(3 * 20 * 20)
        path = folder / f"class{index % 2}" / f"{index:02d}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6\n20 20\n255\n" + bytes(value // 2 + 100 * (index % 2) for value in noise))


def following_values(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = {str(line["step"]): line["loss"] for line in lines if "loss" in line}
    epochs = {str(line["step"]): figures(line) for line in lines if "mean_loss" in line}
    return losses, epochs


def figures(line):
    return {name: value for name, value in line.items() if name not in ("step", "epoch")}


def this_machine():
    values = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), value.strip())
    cpu = " ".join(values.get(name, "?") for name in ("vendor_id", "cpu family", "model"))
    return {"torch": metadata.version("torch").split("+")[0], "cpu": cpu}


def expected_values(method):
    """Losses, epoch figures, and the tolerance: 0 on the kind of machine that wrote them."""
    saved = json.loads((OLD / method / "following.json").read_text())
    tolerance = 0 if saved["written_with"] == this_machine() else ELSEWHERE
    return saved["losses"], saved["epochs"], tolerance


@pytest.mark.parametrize("method", ["swav", "deepclusterv2"])
def test_an_old_checkpoint_resumes_to_the_same_losses(resume, method):
    losses, epochs = resume(method, TWO)
    old_losses, old_epochs, tolerance = expected_values(method)
    assert losses == pytest.approx(old_losses, rel=tolerance, abs=0)
    assert list(epochs) == list(old_epochs)
    for step, old in old_epochs.items():
        assert epochs[step] == pytest.approx(old, rel=tolerance, abs=0)


def test_one_process_takes_over_the_old_queue_and_teacher_of_two(resume):
    losses, _ = resume("swav")
    old_losses, _, _ = expected_values("swav")
    assert losses == pytest.approx(old_losses, rel=ELSEWHERE)
