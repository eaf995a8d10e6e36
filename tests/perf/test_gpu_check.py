"""perf.gpu_check without a GPU: its error, and those of its parts that run on a CPU."""

import subprocess
import sys

import pytest
import torch

from config.recipe import ROOT
from perf.gpu_check import numerics, run_step
from perf.roofline import work_of
from perf.step.device_step import StepCase


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_one_line_and_code_2():
    process = subprocess.run(
        [sys.executable, "-m", "perf.gpu_check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (2, "swave: gpu-check needs a GPU, and no GPU is visible\n")


@pytest.mark.slow
def test_a_step_is_measured_on_a_cpu_too():
    changes = ("crops.global.size=32", "crops.local.size=16", "model.backbone=resnet18", "swav.queue.length=0")
    case = StepCase(
        str(ROOT / "config" / "folder.yaml"), 2, 1, "fp32", 0, changes=(*changes, "model.prototypes=30"), on_gpu=False
    )
    row = run_step(case)
    assert "error" not in row, row
    assert row["images_per_second"] > 0 and row["share_of_roofline"] > 0 and row["step_seconds"] > 0


def test_work_of_resnet50_is_the_published_one():
    """facts: 4.087 G multiply-adds and 11.1 M convolution outputs for an image of 224 pixels."""
    from model.backbone import build_backbone

    with torch.device("meta"):
        work = work_of(build_backbone("resnet50"), [(1, 224)], torch.device("meta"))
    assert work.products == pytest.approx(4.087e9, rel=0.01)
    assert work.elements == pytest.approx(11.1e6, rel=0.01)


@pytest.mark.slow
def test_numerics_run_on_a_cpu(tmp_path):
    """The code of the GPU check on one CPU rank with few states, so that a slip in it does not cost time on a GPU."""
    result = numerics(1, on_gpu=False, states=1, halves=("fp16",))
    assert len(result["rows"]) == 7
    assert all(row["holds"] for row in result["rows"]), result["rows"]
