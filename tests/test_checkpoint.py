"""Checkpoints: whole or not there, the same network on any number of ranks, and never another network silently."""

import json

import pytest
import torch
from ranks import run_ranks

from launch.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from launch.cluster import Cluster
from model.backbone import build_backbone
from model.lars import LARS, parameter_groups
from model.queue import EmbeddingQueue
from model.swav import SwAV

LENGTH = 12


def parts(seed, world_size=1, width=4):
    torch.manual_seed(seed)
    network = SwAV(build_backbone("resnet", block="basic", layers=[1], base_width=width, stem="small"), 8, 6, 5)
    optimizer = LARS(parameter_groups(network), lr=0.1)
    queue = EmbeddingQueue(2, LENGTH, 6, global_batch=4, world_size=world_size)
    return network, optimizer, queue


def stepped(rank, world_size):
    """A network after a step, with momentum, batch-norm statistics and queue that differ between ranks."""
    network, optimizer, queue = parts(0, world_size)
    torch.manual_seed(100)  # alike on all ranks: gradients are averaged in a real run
    network([torch.randn(8, 3, 8, 8)], 4)[1].square().sum().backward()
    optimizer.step()
    torch.manual_seed(200 + rank)
    network([torch.randn(8, 3, 8, 8)], 4)  # moves the batch-norm statistics
    queue.push(torch.randn(2, LENGTH // world_size, 6))
    return network, optimizer, queue


def save(task):
    rank, world_size, directory = task
    network, optimizer, queue = stepped(rank, world_size)
    save_checkpoint(directory, {"step": 7, "config": {}}, network, optimizer, queue, keep=2)
    return contents(network, optimizer, queue)


def contents(network, optimizer, queue):
    momentum = [optimizer.state[p]["momentum_buffer"] for p in network.parameters()]
    return [tensor.clone().numpy() for tensor in (*network.state_dict().values(), *momentum, queue.embeddings)]


def restored(directory, rank, world_size):
    network, optimizer, queue = parts(1, world_size)
    load_checkpoint(
        latest_checkpoint(directory), network, optimizer, queue, Cluster(rank, world_size, rank, world_size)
    )
    return contents(network, optimizer, queue)


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_gets_its_own_state_back_bit_for_bit(tmp_path, world_size):
    saved = run_ranks([(rank, world_size, tmp_path) for rank in range(world_size)], save)
    for rank in range(world_size):
        for one, other in zip(saved[rank], restored(tmp_path, rank, world_size), strict=True):
            assert (one == other).all()


def test_another_world_size_gets_the_same_weights_and_the_whole_queue(tmp_path):
    saved = run_ranks([(rank, 2, tmp_path) for rank in range(2)], save)
    found = [restored(tmp_path, rank, 3) for rank in range(3)]
    names = list(parts(0)[0].state_dict())
    for index, name in enumerate(names):
        for rank in range(3):
            if "running" in name:  # the average of the ranks' statistics
                assert found[rank][index] == pytest.approx((saved[0][index] + saved[1][index]) / 2)
            else:
                assert (found[rank][index] == saved[0][index]).all()
    rows = sorted(row.tobytes() for part in saved for row in part[-1][0])
    assert sorted(row.tobytes() for part in found for row in part[-1][0]) == rows


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, one_rank):
    network, optimizer, queue = stepped(0, 1)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, {"step": step, "config": {}}, network, optimizer, queue, keep=3)
    assert latest_checkpoint(tmp_path).name == "step-000000003"
    weights = tmp_path / "step-000000003" / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert latest_checkpoint(tmp_path).name == "step-000000002"
    (tmp_path / "step-000000002" / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path).name == "step-000000001"
    (tmp_path / "step-000000001" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        latest_checkpoint(tmp_path)


def test_what_a_kill_leaves_behind_is_ignored_and_cleared(tmp_path, one_rank):
    network, optimizer, queue = stepped(0, 1)
    save_checkpoint(tmp_path, {"step": 1, "config": {}}, network, optimizer, queue, keep=2)
    (tmp_path / ".writing-step-000000002").mkdir()
    (tmp_path / ".writing-step-000000002" / "network.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "step-000000001"
    save_checkpoint(tmp_path, {"step": 2, "config": {}}, network, optimizer, queue, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000000001", "step-000000002"]


def test_only_the_newest_are_kept(tmp_path, one_rank):
    network, optimizer, queue = stepped(0, 1)
    for step in range(5):
        save_checkpoint(tmp_path, {"step": step, "config": {}}, network, optimizer, queue, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000000003", "step-000000004"]


def test_another_network_is_an_error_that_lists_the_keys(tmp_path, one_rank):
    save_checkpoint(tmp_path, {"step": 1, "config": {}}, *stepped(0, 1), keep=2)
    network, optimizer, queue = parts(0, width=8)
    with pytest.raises(
        CheckpointError, match=r"does not fit this recipe's network: backbone\.bn1\.bias, .* and \d+ more"
    ):
        load_checkpoint(latest_checkpoint(tmp_path), network, optimizer, queue, Cluster())


def test_nothing_is_pickled(tmp_path, one_rank):
    path = save_checkpoint(tmp_path, {"step": 1, "config": {}}, *stepped(0, 1), keep=2)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text())["world_size"] == 1


@pytest.fixture
def one_rank(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
