"""Networks of shapes alone."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from config.recipe import load_config
from model.shapes import only_shapes
from perf.kill_check import make_recipe
from training.build import build_network
from training.disk_space import checkpoint_gb

RESNET = {"backbone": "resnet", "options": {"block": "basic", "layers": [1, 1], "base_width": 8}}
VIT = {"backbone": "vit_tiny_patch16_224", "options": {"depth": 1}}
HEAD = {"hidden_dim": 16, "embedding_dim": 8, "prototypes": 12}


class Called(TorchDispatchMode):
    """Collects the names of the operations that run in its block."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("backbone", [RESNET, VIT], ids=["own", "timm"])
def test_a_network_of_shapes_has_the_parameters_of_a_real_one_and_fills_none_with_random_numbers(backbone):
    with Called() as called, only_shapes():
        shapes = build_network(backbone | HEAD)
    real = dict(build_network(backbone | HEAD).named_parameters())
    assert {name: (p.shape, p.dtype) for name, p in shapes.named_parameters()} == {
        name: (p.shape, p.dtype) for name, p in real.items()
    }
    assert all(parameter.is_meta for parameter in shapes.parameters())
    assert not draws(called)


def test_the_size_of_a_checkpoint_needs_no_random_numbers(tmp_path):
    config = load_config([str(make_recipe(tmp_path))])
    with Called() as called:
        assert checkpoint_gb(config) > 0
    assert called.names and not draws(called)


def draws(called):
    """The operations among the called ones that fill a tensor with random numbers."""
    return {name for name in called.names if "normal_" in name or "uniform_" in name}
