"""A frozen backbone together with compilation, half precision, offload and a step in parts."""

import json

import pytest

from perf.zero_ranks import NOISE, Case
from support.forks import run_processes, start_server
from support.on_ranks import frozen_moves
from training.distributed import free_port

RANKS = 2
HEAD = ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias")
TINY = {"tiny": True, "frozen_backbone": frozen_moves.FROZEN, "sync": 0}
CASES = {
    "plain": Case(0, RANKS, **TINY),
    "compiled": Case(2, RANKS, compile=True, offload=True, **TINY),
    "parts": Case(0, RANKS, accumulation=2, **TINY),
    "compiled parts": Case(3, RANKS, accumulation=2, compile=True, offload=True, **TINY),
    "half": Case(1, RANKS, "fp16", compile=True, offload=True, **TINY),
    "half parts": Case(2, RANKS, "fp16", accumulation=2, compile=True, **TINY),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("frozen"), free_port()
    start_server()
    run_processes(frozen_moves.moves, [(rank, CASES, port, folder) for rank in range(RANKS)])
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_only_the_head_moves_while_the_backbone_is_frozen_and_all_moves_afterwards(found, name):
    frozen, after = found[name]["frozen"], found[name]["after"]
    assert set(frozen) - {NOISE} == {f"projection_head.{layer}" for layer in HEAD}
    assert {name for name in after if name.startswith("backbone.")} >= {"backbone.conv1.weight", "backbone.bn1.weight"}
    assert set(frozen) - {NOISE} <= set(after)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other", "difference"),
    [
        ("compiled", "plain", 1e-4),
        ("compiled parts", "parts", 1e-4),
        ("half", "plain", 0.01),
        ("half parts", "parts", 0.01),
    ],
)
def test_the_losses_are_those_without_compilation_offload_and_half_precision(found, name, other, difference):
    assert found[name]["losses"] == pytest.approx(found[other]["losses"], rel=difference)
    assert found[name]["graphs"] > 0 and found[other]["graphs"] == 0
