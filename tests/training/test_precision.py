"""engine.precision=auto takes bfloat16 where it makes steps faster, also on a CPU."""

import pytest
import torch

from config.recipe import load_config
from training.auto import fit
from training.distributed import Cluster

DEMO = ["config/demo.yaml", "data.path=images"]
LINE = "engine.precision={}  ({}; override with engine.precision=...)"


def chosen(*settings):
    config = load_config([*DEMO, *settings])
    lines = fit(config, 60_000, Cluster())
    return config.engine.precision, "".join(line for line in lines if line.startswith("engine.precision"))


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_bfloat16_takes_it_for_networks_that_gain_by_it(monkeypatch, instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, instructions: True})
    assert chosen() == ("fp32", LINE.format("fp32", "a CPU that has it, but fewer than 2 million parameters"))
    large = "a CPU that has it, and 2 million parameters or more"
    assert chosen("model.backbone=resnet18") == ("bf16", LINE.format("bf16", large))
    assert chosen("model.backbone=resnet18", "engine.precision=fp32") == ("fp32", "")


def test_another_cpu_takes_float32(monkeypatch):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False, "cpu_name": "x"}
    )
    assert chosen("model.backbone=resnet18") == ("fp32", LINE.format("fp32", "a CPU without bf16"))


def test_a_network_is_counted_without_its_weights():
    from training.build import backbone_parameters

    model = load_config([*DEMO, "model.backbone=resnet18", "model.options={pretrained: true}"]).model
    assert backbone_parameters(model) == 11_176_512
