"""Runs with crops.custom: killed and resumed to the same losses; no checkpoint makes swave import the function."""

import json
import sys

import pytest

from evaluation.backbones import open_backbone
from export.__main__ import export
from support.tiny_runs import kill, losses, make_workplace, train, wait_for_step

pytestmark = pytest.mark.slow(seconds=60)
CODE = """
import torch

def noise(crops, generator):
    return crops + 0.1 * torch.randn(crops.shape, generator=generator)
"""
NOISY = "{size: 16, scale: [0.3, 1], custom: 'run_change:noise'}"
GROUPS = f"crops.groups=[{NOISY}, {{size: 16, blur: {{probability: 1}}}}, {{size: 8}}]"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    root = make_workplace(tmp_path_factory.mktemp("custom"))
    (root / "code").mkdir()
    (root / "code" / "run_change.py").write_text(CODE)
    sys.path.insert(0, str(root / "code"))  # processes that tests fork inherit it
    train(root, "whole", GROUPS, "pipeline.backend=ffcv")
    yield root
    sys.path.remove(str(root / "code"))


def test_a_killed_run_goes_on_to_the_same_losses(workplace):
    process = train(workplace, "killed", GROUPS, "pipeline.backend=ffcv", wait=False)
    wait_for_step(workplace, "killed", 10, process)
    kill(process)
    train(workplace, "killed", GROUPS, "pipeline.backend=ffcv")
    whole = losses(workplace, "whole")
    assert len(whole) == 24 and losses(workplace, "killed") == whole
    train(workplace, "plain", GROUPS.replace("run_change:noise", ""), "pipeline.backend=ffcv", "run.epochs=1")
    assert all(losses(workplace, "plain")[step] != whole[step] for step in range(1, 5))


def test_no_checkpoint_makes_swave_import_the_function(workplace, tmp_path):
    state = json.loads(next((workplace / "whole" / "checkpoints").glob("step-*/state.json")).read_text())
    assert state["config"]["crops"]["groups"][0]["custom"] == "run_change:noise"
    open_backbone(str(workplace / "whole"))
    export(workplace / "whole", tmp_path / "out", "safetensors")
    assert "run_change" not in sys.modules
