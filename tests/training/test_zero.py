"""Every ZeRO stage takes the same step as stage 0 in every precision, and checkpoints move between stages.

`make zero-check` has more: 20 states, 1, 2 and 4 ranks, steps in one and two parts, all stages in half precision.
"""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from perf.zero_check import LIMITS, LOSS_LIMITS, row_of, run_case
from perf.zero_ranks import FROZEN, NOISE, Case
from support.forks import run_processes, start_server
from support.on_ranks import zero_moves
from support.tiny_runs import make_workplace
from training.checkpoint.save_load import latest_checkpoint, load_checkpoint
from training.checkpoint.shards import SavedTensors
from training.distributed import free_port
from training.trained_network import full_weights

STATES, STEPS = 6, 2
STATE = {"lars": "momentum_buffer", "adamw": "exp_avg", "muon": "exp_avg"}


def in_ranks(function, case, *arguments):
    port = free_port()
    run_processes(function, [(rank, case, port, *arguments) for rank in range(case.ranks)])


@pytest.fixture(scope="module", autouse=True)
def forks():
    """Start the server from which perf.ranks forks."""
    start_server()


@pytest.fixture(scope="module")
def stage_0(tmp_path_factory):
    """Folder and results of stage 0 on 2 ranks."""
    folder = tmp_path_factory.mktemp("stage0")
    return folder, run_case(Case(0, 2), folder, STATES, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_takes_stage_0s_step_from_each_of_6_states(stage, stage_0, tmp_path):
    folder, base = stage_0
    case = Case(stage, 2)
    row = row_of(case, run_case(case, tmp_path, STATES, STEPS, reference=folder), base["losses"])
    assert all(row[name] <= limit for name, limit in LIMITS.items()), row
    assert row["loss_deviation"] <= LOSS_LIMITS["fp32"], row


@pytest.fixture(scope="module")
def tiny_0(tmp_path_factory):
    """Folder and results of stage 0 with the tiny network: six states, and the losses of 50 steps."""
    folder = tmp_path_factory.mktemp("tiny0")
    return folder, run_case(Case(0, 2, tiny=True), folder, FROZEN + 3, 50)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16")])
def test_weights_are_channels_last_where_deepspeed_does_not_flatten_them(stage, precision, tmp_path):
    in_ranks(zero_moves.memory_formats, Case(stage, 1, precision), make_workplace(tmp_path))
    found = json.loads((tmp_path / "formats.json").read_text())
    assert found and all(formats == [stage == 0] * 3 for formats in found)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "stages", "limit"), [("adamw", (2, 3), 1e-5), ("muon", (1, 2, 3), 1e-5)])
def test_adamw_and_muon_take_the_same_step_at_every_stage(optimizer, stages, limit, tmp_path):
    case = Case(0, 2, optimizer=optimizer, tiny=True)
    run_case(case, tmp_path / "0", 5, 0)
    for stage in stages:
        result = run_case(replace(case, stage=stage), tmp_path / str(stage), 5, 0, reference=tmp_path / "0")
        assert result["update_deviation"] <= limit and result["momentum_deviation"] <= 1e-6, (stage, result)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "stages"), [("lars", (1, 2, 3)), ("adamw", (3,)), ("muon", (2,))])
def test_a_frozen_backbone_stays_and_then_takes_the_same_step_at_every_stage(optimizer, stages, tmp_path):
    case = Case(0, 2, optimizer=optimizer, tiny=True, frozen_backbone=2, backbone_scale=0.5)
    base = run_case(case, tmp_path / "0", 4, 3)
    weights = [full_weights(path) for path in sorted((tmp_path / "0" / "states").glob("step-*"))]
    for name in weights[0]:
        same = [torch.equal(a[name], b[name]) for a, b in pairwise(weights)]
        if name.startswith("backbone.") and "running" not in name and "tracked" not in name:
            assert same == [True, True, False, False], name
        elif name.startswith("projection_head.") and name != NOISE:
            assert not any(same), name
    frozen = SavedTensors(tmp_path / "0" / "states" / "step-000000002", 2)
    assert not frozen.has(STATE[optimizer], "backbone.conv1.weight")
    for stage in stages:
        other = replace(case, stage=stage)
        result = run_case(other, tmp_path / str(stage), 4, 3, reference=tmp_path / "0")
        assert result["update_deviation"] <= 1e-5 and result["momentum_deviation"] <= 1e-5, result
        assert result["losses"] == pytest.approx(base["losses"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2])
def test_an_offloaded_optimizer_takes_the_same_step(stage, tiny_0, tmp_path):
    result = run_case(Case(stage, 2, offload=True, tiny=True), tmp_path, 5, 0, reference=tiny_0[0])
    assert max(result[name] for name in LIMITS) <= 1e-6, result


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2])
def test_ranks_with_synchronized_batch_norm_are_one_rank_on_the_whole_batch(ranks, tmp_path):
    """In float64: in float32 the ranks' sums differ in the last bits, some ReLUs amplify that, and updates differ by
    2e-3."""
    base = run_case(Case(0, ranks, "fp64", sync=0, tiny=True), tmp_path / "many", 3, 3)
    one = run_case(Case(0, 1, "fp64", tiny=True), tmp_path / "one", 3, 3, reference=tmp_path / "many")
    assert all(one[name] <= limit for name, limit in LIMITS.items()), one
    assert one["losses"] == pytest.approx(base["losses"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_frozen_prototypes_do_not_move_and_have_no_momentum_and_then_keep_unit_rows(stage, tiny_0, tmp_path):
    folder = tiny_0[0] if stage == 0 else tmp_path
    if stage != 0:
        run_case(Case(stage, 2, tiny=True), folder, FROZEN + 3, 0)
    weights = [full_weights(path)["prototypes.weight"] for path in sorted((folder / "states").glob("step-*"))]
    for frozen in weights[1 : FROZEN + 1]:
        assert torch.equal(frozen, weights[0])
    for moved in weights[FROZEN + 1 :]:
        assert not torch.equal(moved, weights[0])
        assert (moved.norm(dim=1) - 1).abs().max() < 1e-6
    frozen = SavedTensors(folder / "states" / f"step-{FROZEN:09d}", 2)
    momentum = frozen.read("momentum_buffer", "prototypes.weight", 0, 480) if has_momentum(frozen) else torch.zeros(1)
    assert not momentum.any()
    assert has_momentum(SavedTensors(folder / "states" / f"step-{FROZEN + 1:09d}", 2))


def has_momentum(saved):
    return saved.has("momentum_buffer", "prototypes.weight")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_tracks_fp32_within_2_percent_over_50_steps(stage, tiny_0, tmp_path):
    case = Case(stage, 2, "bf16", tiny=True)
    row = row_of(case, run_case(case, tmp_path, 0, 50), tiny_0[1]["losses"])
    assert row["loss_deviation"] <= LOSS_LIMITS["bf16"], row


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_overflow_skips_the_step_on_all_ranks_halves_the_scale_and_changes_nothing_else(stage, tmp_path):
    in_ranks(zero_moves.overflow, Case(stage, 2, "fp16", tiny=True), tmp_path)
    for facts in json.loads((tmp_path / "found.json").read_text()):
        assert facts == {"applied": False, "halved": True, "same": True, "goes_on": True}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lars", "muon"])
def test_a_run_moves_from_4_ranks_at_stage_3_to_2_at_stage_2_to_1_at_stage_0(optimizer, tmp_path):
    worlds = [Case(stage, ranks, sync=0, optimizer=optimizer, tiny=True) for stage, ranks in ((3, 4), (2, 2), (0, 1))]
    in_ranks(zero_moves.move, worlds[0], make(tmp_path / "whole"), None, 0, 15)
    undisturbed = json.loads((tmp_path / "whole" / "losses.json").read_text())
    source, losses = None, []
    for index, case in enumerate(worlds):
        folder = make(tmp_path / f"world{index}")
        in_ranks(zero_moves.move, case, folder, source, 5 * index, 5)
        losses += json.loads((folder / "losses.json").read_text())
        if source is not None:
            same_state(latest_checkpoint(source), latest_checkpoint(folder / "before"))
        source = folder / "after"
    assert losses == pytest.approx(undisturbed, rel=1e-4)


def make(folder):
    folder.mkdir()
    return folder


def same_state(one, other):
    """Assert that masters, momentum and queue of two checkpoints are the same bits once gathered."""
    (state, first), (_, second) = load_checkpoint(one), load_checkpoint(other)
    for name, shape in state["shapes"].items():
        for kind in ("master", "momentum_buffer", "exp_avg", "exp_avg_sq"):
            if first.has(kind, name):
                whole = [saved.read(kind, name, 0, torch.Size(shape).numel()) for saved in (first, second)]
                assert torch.equal(*whole), (kind, name)
    rows = [
        sorted(row.numpy().tobytes() for tensors in saved.ranks for row in tensors["own/queue"][0])
        for saved in (first, second)
    ]
    assert rows[0] == rows[1]
