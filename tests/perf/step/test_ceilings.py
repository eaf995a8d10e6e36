"""The ceiling of products: a network's own layers count, with their real number of operations."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perf.step import ceilings as module
from perf.step.ceilings import ceilings, layers, squares


@pytest.fixture
def network():
    first, second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
    return nn.Sequential(first, second, nn.Flatten(1, 2), nn.Linear(8, 4))


def test_each_product_has_the_operations_that_torch_counts(network, monkeypatch):
    monkeypatch.setattr(module, "OPERATIONS", {"cpu": 5e4})
    monkeypatch.setattr(module, "SIDES", {"cpu": (16, 32)})
    device = torch.device("cpu")
    products = [*squares(device, torch.float32), *layers(device, torch.float32, network, [(2, 16), (1, 16)])]
    names = [product.name for product in products]
    assert names[:2] == ["square matrices of 16", "square matrices of 32"]
    assert names[2:] == ["Conv2d 8x3x3x3"] * 2 + ["Conv2d 8x2x3x3"] * 2 + ["Linear 4x8"]  # both layouts, largest first
    for product in products:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            product.act()
        assert counter.get_total_flops() == product.operations


def test_the_ceiling_is_that_of_the_fastest_product(network, monkeypatch):
    monkeypatch.setattr(module, "COPIED", {"cpu": 1 << 20})
    monkeypatch.setattr(module, "OPERATIONS", {"cpu": 1e7})
    monkeypatch.setattr(module, "SIDES", {"cpu": (4, 256)})
    found = ceilings(torch.device("cpu"), torch.bfloat16, network, [(2, 16)])
    assert found.of and found.peak_flops > 0 and found.bandwidth > 0 and found.noise >= 0
    assert found.of != "square matrices of 4"  # 128 operations cannot be the fastest
