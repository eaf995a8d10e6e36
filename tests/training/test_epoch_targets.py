"""Whole runs of DeepCluster-v2 and SeLa-v2: kills, other numbers of processes, every ZeRO stage."""

import json

import numpy as np
import pytest
import torch

from model.clustering.deepcluster import IGNORED, one_hot
from model.clustering.memory import Memory
from model.clustering.targets import EpochTargets
from perf.zero_ranks import Case
from support.forks import context, run_processes
from support.on_ranks.cluster_moves import set_prototypes
from support.ranks import run_ranks
from support.tiny_runs import interrupted, kill, losses, make_workplace, train, wait_for_step
from training.checkpoint.shards import tensors_to_write
from training.distributed import free_port
from training.trained_network import read_trained

# Batch norm over all processes, so that their number changes only rounding.
SETTINGS = (
    *("swav.queue.length=0", "swav.freeze_prototypes=auto", "engine.sync_batch_norm=0", "run.epochs=2"),
    "checkpoint.keep=9",
)
STEPS = 16


@pytest.fixture(scope="module", params=["deepclusterv2", "selav2"])
def undisturbed(request, tmp_path_factory):
    """An uninterrupted run on one process: its workplace and settings."""
    workplace = make_workplace(tmp_path_factory.mktemp(request.param))
    settings = (*SETTINGS, f"method={request.param}")
    train(workplace, "undisturbed", *settings)
    assert losses(workplace, "undisturbed")[1] > 0  # a loss of 0 would mean rows without targets, so no first pass
    return workplace, settings


def test_a_run_learns_clusters_that_all_heads_use(undisturbed):
    workplace, _ = undisturbed
    summary = json.loads((workplace / "undisturbed/summary.json").read_text())
    assert sorted(losses(workplace, "undisturbed")) == list(range(1, STEPS + 1))
    assert summary["code_entropy"] == 0 and summary["prototypes_in_use"] > 0.5
    weight = read_trained(workplace / "undisturbed").network.prototypes.weight
    assert weight.shape == (3 * 12, 8)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(36))


@pytest.mark.slow
def test_a_killed_run_gives_the_same_losses_bit_for_bit(undisturbed):
    workplace, settings = undisturbed
    for step in (5, 9):  # before and after the first targets from an epoch's own embeddings
        process = train(workplace, "killed", *settings, wait=False)
        wait_for_step(workplace, "killed", step, process)
        kill(process)
    assert "resuming from" in train(workplace, "killed", *settings)
    assert losses(workplace, "killed") == losses(workplace, "undisturbed")


@pytest.mark.slow
def test_a_run_goes_on_with_two_processes_at_another_stage(undisturbed):
    workplace, settings = undisturbed
    interrupted(workplace, "undisturbed", "moved", 4)
    output = train(workplace, "moved", *settings, "engine.stage=2", ranks=2)
    assert "resuming from" in output and "first embeddings" not in output
    assert losses(workplace, "moved") == pytest.approx(losses(workplace, "undisturbed"), rel=1e-3)


@pytest.mark.slow
def test_two_processes_at_stage_3_have_the_losses_of_one(undisturbed):
    workplace, settings = undisturbed
    train(workplace, "two", *settings, "engine.stage=3", ranks=2)
    assert losses(workplace, "two") == pytest.approx(losses(workplace, "undisturbed"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [2])
def test_a_batch_in_parts_takes_all_its_rows(undisturbed, accumulation):
    workplace, settings = undisturbed
    train(workplace, "parts", *settings, f"engine.accumulation={accumulation}")
    assert sorted(losses(workplace, "parts")) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_set_prototypes_reach_network_and_masters_at_every_stage_and_stay(stage):
    port, case, results = free_port(), Case(stage, 2, tiny=True), context().Queue()
    run_processes(set_prototypes, [(rank, case, port, results) for rank in range(2)])
    for _, network, masters, scores, moved in [results.get(timeout=120) for _ in range(2)]:
        assert network == 0 and masters == 0 and scores < 1e-5 and moved


# ---- what a checkpoint holds ---------------------------------------------------------------------------------------
def test_a_row_without_a_target_is_a_code_of_zeros():
    codes = one_hot(torch.tensor([[1, IGNORED], [0, 2]]), 3)
    assert codes.tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]


def exchanged(rows):
    clusters = EpochTargets(Memory(1, 8, 2), torch.tensor([[3, 1, IGNORED, 2]]))
    targets = clusters.targets_of(rows.numpy(), torch.ones(1, len(rows), 2))
    rank, tensors = torch.distributed.get_rank(), clusters.state_tensors()
    return targets.tolist(), clusters.memory.rows.tolist(), sorted(tensors_to_write(tensors, rank, 2))


def test_a_step_gets_the_targets_of_its_rows_and_stores_their_embeddings():
    inputs = (torch.tensor([3, 0]), torch.tensor([1, 2]))
    results = run_ranks(list(inputs), exchanged)
    for rows, (targets, stored, _) in zip(inputs, results, strict=True):
        assert targets == [[[3, 1, IGNORED, 2][row] for row in rows]] and stored == rows.tolist()
    own = ["own/memory.embeddings", "own/memory.rows"]
    assert [names for *_, names in results] == [["alike/targets", *own], own]  # "alike" tensors are written once


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_targets_of_two_ranks_go_on_with_any_number_of_ranks(ranks):
    targets = torch.tensor([[3, 1, IGNORED, 2, 0, 1]])
    saved = []
    for rows in (np.array([3, 0]), np.array([1, 2])):
        clusters = EpochTargets(Memory(1, 2, 2), targets)
        clusters.targets_of(rows, torch.from_numpy(rows)[None, :, None] * torch.ones(1, 2, 2))
        saved.append(clusters.state_tensors())
    stored = []
    for rank in range(ranks):
        resumed = EpochTargets(Memory(1, 4, 2), torch.zeros_like(targets))
        resumed.load_state_tensors(saved, rank, ranks)
        assert torch.equal(resumed.targets, targets)
        assert torch.equal(resumed.memory.embeddings[0, :, 0], resumed.memory.rows.float())
        stored += resumed.memory.rows.tolist()
    assert sorted(stored) == [0, 1, 2, 3]
