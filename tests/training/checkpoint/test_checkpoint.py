"""Checkpoints: complete or absent, the same network on any number of ranks, and an error for another network."""

import errno
import json
import os
import random
import re
import shutil
import signal
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common import progress
from model.backbone import build_backbone
from model.optimizer.groups import parameter_groups
from model.optimizer.lars import LARS
from model.optimizer.segments import Layout
from model.queue import EmbeddingQueue
from model.swav import SwAV
from support.forks import context
from support.ranks import run_ranks
from training.checkpoint import save_load as checkpoint
from training.checkpoint.masters import load_network, network_shapes, network_tensors
from training.checkpoint.save_load import (
    CheckpointError,
    damage_of,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from training.trained_network import full_weights

LENGTH = 12


def parts(seed, world_size=1, width=4):
    torch.manual_seed(seed)
    network = SwAV(build_backbone("resnet", block="basic", layers=[1], base_width=width, stem="small"), 8, 6, 5)
    optimizer = LARS(parameter_groups(network), lr=0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    optimizer.layout = Layout.of_whole(optimizer.param_groups, names)
    queue = EmbeddingQueue(2, LENGTH, 6, global_batch=4, world_size=world_size)
    return network, optimizer, queue


def stepped(rank, world_size):
    """A network after a step, with momentum, batch-norm statistics and queue that differ between ranks."""
    network, optimizer, queue = parts(0, world_size)
    torch.manual_seed(100)  # the same on all ranks: a real run averages gradients
    network([torch.randn(8, 3, 8, 8)], 4)[1].square().sum().backward()
    optimizer.step()
    torch.manual_seed(200 + rank)
    network([torch.randn(8, 3, 8, 8)], 4)  # moves the batch-norm statistics
    queue.push(torch.randn(2, LENGTH // world_size, 6))
    return network, optimizer, queue


def save_state(directory, step, network, optimizer, queue, rank=0, world_size=1, **options):
    state = {"step": step, "config": {}, **network_shapes(network, optimizer)}
    tensors = network_tensors(network, optimizer, rank, world_size) | queue.state_tensors()
    return save_checkpoint(directory, state, tensors, **options)


def load_state(path, network, optimizer, queue, rank=0, world_size=1):
    """Load a checkpoint; returns its step."""
    state, saved = load_checkpoint(path, {"shapes": dict, "buffers": list})
    load_network(state, saved, network, optimizer, rank, world_size)
    queue.load_state_tensors(saved.ranks, rank, world_size)
    return state["step"]


def save(task):
    rank, world_size, directory = task
    trained = stepped(rank, world_size)
    save_state(directory, 7, *trained, rank, world_size, keep=2)
    return contents(*trained)


def contents(network, optimizer, queue):
    momentum = [optimizer.state[p]["momentum_buffer"] for p in network.parameters()]
    return [tensor.clone().numpy() for tensor in (*network.state_dict().values(), *momentum, queue.embeddings)]


def restored(task):
    rank, world_size, directory = task
    new = parts(1, world_size)
    load_state(latest_checkpoint(directory), *new, rank, world_size)
    return contents(*new)


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_gets_its_own_state_back_bit_for_bit(tmp_path, world_size):
    tasks = [(rank, world_size, tmp_path) for rank in range(world_size)]
    saved = run_ranks(tasks, save)
    for before, after in zip(saved, run_ranks(tasks, restored), strict=True):
        for one, other in zip(before, after, strict=True):
            assert (one == other).all()


def test_another_world_size_gets_the_same_weights_and_the_whole_queue(tmp_path):
    saved = run_ranks([(rank, 2, tmp_path) for rank in range(2)], save)
    loaded = run_ranks([(rank, 3, tmp_path) for rank in range(3)], restored)
    names = list(parts(0)[0].state_dict())
    for index, name in enumerate(names):
        for rank in range(3):
            if "running" in name:  # the average of the ranks' statistics
                assert loaded[rank][index] == pytest.approx((saved[0][index] + saved[1][index]) / 2)
            else:
                assert (loaded[rank][index] == saved[0][index]).all()
    rows = sorted(row.tobytes() for part in saved for row in part[-1][0])
    assert sorted(row.tobytes() for part in loaded for row in part[-1][0]) == rows


def test_full_weights_are_the_networks(tmp_path):
    saved = run_ranks([(rank, 2, tmp_path) for rank in range(2)], save)
    weights = full_weights(latest_checkpoint(tmp_path))
    assert sorted(weights) == sorted(parts(0)[0].state_dict())
    for index, name in enumerate(parts(0)[0].state_dict()):
        if "running" not in name:
            assert (weights[name].numpy() == saved[0][index]).all()


def test_a_damaged_checkpoint_is_passed_over_for_the_previous_one(tmp_path, one_rank):
    trained = stepped(0, 1)
    for step in (1, 2, 3):
        save_state(tmp_path, step, *trained, keep=3)
    assert latest_checkpoint(tmp_path).name == "step-000000003"
    weights = tmp_path / "step-000000003" / "rank-00000.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert latest_checkpoint(tmp_path).name == "step-000000002"
    (tmp_path / "step-000000002" / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path).name == "step-000000001"
    (tmp_path / "step-000000001" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        latest_checkpoint(tmp_path)


def test_the_check_of_a_large_checkpoint_shows_a_bar_on_rank_0(tmp_path, one_rank, capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    path = save_state(tmp_path, 3, *stepped(0, 1), keep=2)
    assert not damage_of(path)
    assert re.search(rf"checking {path.name}: 100%.* (\S+[kM])/\1 \[", capsys.readouterr().err)
    monkeypatch.setenv("RANK", "1")  # of an evaluation on several ranks, each of which checks what it reads
    assert not damage_of(path) and not capsys.readouterr().err


def test_leftovers_of_a_kill_are_ignored_and_cleared(tmp_path, one_rank):
    trained = stepped(0, 1)
    save_state(tmp_path, 1, *trained, keep=2)
    (tmp_path / ".writing-step-000000002").mkdir()
    (tmp_path / ".writing-step-000000002" / "rank-00000.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "step-000000001"
    save_state(tmp_path, 2, *trained, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000000001", "step-000000002"]


def test_only_the_newest_are_kept(tmp_path, one_rank):
    trained = stepped(0, 1)
    for step in range(5):
        save_state(tmp_path, step, *trained, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000000003", "step-000000004"]


def test_another_network_is_an_error_that_lists_the_keys(tmp_path, one_rank):
    save_state(tmp_path, 1, *stepped(0, 1), keep=2)
    wider = parts(0, width=8)
    with pytest.raises(
        CheckpointError, match=r"does not fit this recipe's network: backbone\.bn1\.bias, .*projection_head\.0\.weight"
    ):
        load_state(latest_checkpoint(tmp_path), *wider)


def test_nothing_is_pickled(tmp_path, one_rank):
    path = save_state(tmp_path, 1, *stepped(0, 1), keep=2)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text())["world_size"] == 1


def save_alike(task):
    rank, _, directory = task
    alike = {f"alike/{name}": torch.full((2,), float(number)) for number, name in enumerate("abcde")}
    save_checkpoint(directory, {"step": 1}, alike | {"own/rank": torch.full((2,), float(rank))}, keep=1)


def test_a_tensor_that_is_equal_on_all_ranks_is_written_once_and_read_on_every_rank(tmp_path):
    run_ranks([(rank, 2, tmp_path) for rank in range(2)], save_alike)
    path = latest_checkpoint(tmp_path)
    _, saved = load_checkpoint(path)
    in_files = [set(load_file(file)) for file in sorted(path.glob("rank-*.safetensors"))]
    assert in_files == [{"alike/a", "alike/c", "alike/e", "own/rank"}, {"alike/b", "alike/d", "own/rank"}]
    for rank, tensors in enumerate(saved.ranks):
        assert [float(tensors[f"alike/{name}"][0]) for name in "abcde"] == [0, 1, 2, 3, 4]
        assert float(tensors["own/rank"][0]) == rank and len(tensors) == 6 and "own/queue" not in tensors


def save_not_finite(task):
    rank, _, directory = task
    values = torch.full((2,), float("nan") if rank else 0.0)
    try:
        save_checkpoint(directory, {"step": 1}, {"own/values": values}, keep=1)
    except checkpoint.NotSaved as error:
        return str(error)


def test_a_value_that_is_not_finite_is_saved_by_no_rank(tmp_path):
    errors = run_ranks([(rank, 2, tmp_path) for rank in range(2)], save_not_finite)
    line = "no checkpoint could be written (rank 1: 1 tensors are not finite, own/values first)"
    assert errors == [line, line]
    assert not list(tmp_path.iterdir())


def test_a_missing_file_or_tensor_is_one_line(tmp_path, one_rank):
    path = save_state(tmp_path, 1, *stepped(0, 1), keep=1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"world_size": 2}))
    with pytest.raises(CheckpointError, match=r"step-000000001: rank-00001.safetensors cannot be read"):
        load_checkpoint(path)
    (path / "state.json").write_text(json.dumps(state | {"buffers": ["elsewhere"]}))
    with pytest.raises(CheckpointError, match=r"lacks 'own/elsewhere'"):
        full_weights(path)
    (path / "state.json").write_text(json.dumps(state | {"shapes": {"backbone.conv1.weight": "wide"}}))
    with pytest.raises(CheckpointError, match=r"shapes or buffers are malformed"):
        full_weights(path)
    for text, line in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (path / "state.json").write_text(text)
        with pytest.raises(CheckpointError, match=line):
            load_checkpoint(path)


def test_every_nth_epochs_checkpoint_stays(tmp_path, one_rank):
    for step in range(1, 8):
        save_state(tmp_path, step, *stepped(0, 1), keep=1, keep_steps=3)
    assert sorted(path.name[-1] for path in tmp_path.glob("step-*")) == ["3", "6", "7"]


# ---- crashes and damage ----------------------------------------------------------------------------------
def save_twice(rank, world_size, directory, victim, point, error, passed):
    """As a rank in its own process: save twice. At `point` of the second save the victim is killed or gets the system's
    `error`; the others notice."""

    def crashing(function):
        def wrapped(*arguments, **named):
            passed.value += 1
            if passed.value == point:
                if error:
                    raise OSError(error, os.strerror(error))
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return wrapped

    torch.set_num_threads(1)
    if world_size > 1:
        store = f"file://{directory}.store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    trained = stepped(rank, world_size)
    save_state(directory, 1, *trained, rank, world_size, keep=1)
    if rank == victim:
        checkpoint.save_file, os.fsync = map(crashing, (checkpoint.save_file, os.fsync))
        Path.write_text, Path.rename, Path.replace = map(crashing, (Path.write_text, Path.rename, Path.replace))
        Path.mkdir, shutil.rmtree = map(crashing, (Path.mkdir, shutil.rmtree))
    try:
        save_state(directory, 2, *trained, rank, world_size, keep=1)
    except checkpoint.NotSaved:
        os._exit(3)
    except RuntimeError:  # gloo: the connection to the victim is closed
        os._exit(4)
    os._exit(0)


def written(tmp_path, point, error=0, victim=0, world_size=1):
    """Run `save_twice` on all ranks: the folder, the exit codes by rank, and the points that the victim passed."""
    directory, passed = tmp_path / f"at{point}-{error}-{victim}", context().Value("i", 0)
    ranks = [
        context().Process(target=save_twice, args=(rank, world_size, directory, victim, point, error, passed))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    return directory, [process.exitcode for process in ranks], passed.value


def usable(directory):
    """Load the newest complete checkpoint; its step."""
    return load_state(latest_checkpoint(directory), *parts(1))


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize(("world_size", "victim"), [(1, 0), (2, 0), (2, 1)])
def test_a_kill_at_any_point_of_a_save_leaves_the_previous_checkpoint_or_the_new_one(tmp_path, world_size, victim):
    _, codes, points = written(tmp_path, 0, 0, victim, world_size)
    assert codes == [0] * world_size and points >= (10 if victim == 0 else 2)  # only rank 0 writes the manifest
    steps = []
    for point in range(1, points + 1):
        directory, codes, _ = written(tmp_path, point, 0, victim, world_size)
        assert codes[victim] == -signal.SIGKILL
        assert all(code == 4 for rank, code in enumerate(codes) if rank != victim)
        steps.append(usable(directory))
    assert steps == sorted(steps) and set(steps) == ({1, 2} if victim == 0 else {1})


@pytest.mark.parametrize(("world_size", "victim"), [(1, 0), (2, 0), (2, 1)])
def test_a_full_or_failing_disk_leaves_the_previous_checkpoint(tmp_path, world_size, victim):
    points = (1, 2, 3, 4, 6) if victim == 0 else (1, 2)
    for point, error in zip(points, cycle((errno.ENOSPC, errno.EIO)), strict=False):
        directory, codes, _ = written(tmp_path, point, error, victim, world_size)
        assert codes == [3] * world_size  # all ranks learn of it
        assert usable(directory) == 1
        assert not list(directory.glob(".writing-*"))


def test_random_damage_is_detected_and_the_previous_checkpoint_is_used(tmp_path, one_rank):
    """200 times: flip a bit, cut a file, delete it, overwrite it, or add another file."""
    chance = random.Random(3)
    trained = stepped(0, 1)
    for step in (1, 2):
        save_state(tmp_path / "sound", step, *trained, keep=2)
    for round in range(200):
        directory = tmp_path / f"damaged{round}"
        shutil.copytree(tmp_path / "sound", directory)
        newest = directory / "step-000000002"
        path = newest / chance.choice(sorted(os.listdir(newest)))
        data = bytearray(path.read_bytes())
        kind = chance.choice(["flip", "cut", "gone", "other", "foreign"])
        if kind == "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        elif kind == "cut":
            path.write_bytes(data[: chance.randrange(len(data))])
        elif kind == "gone":
            path.unlink()
        elif kind == "other":
            path.write_bytes(chance.randbytes(chance.randrange(2000)))
        else:
            (newest / "extra.pt").write_bytes(b"\x80\x04K\x01.")
        lines = []
        newest = latest_checkpoint(directory, lines.append)
        assert load_state(newest, *parts(1)) == 1, kind
        assert len(lines) == 1 and "step-000000002 is damaged" in lines[0]
        shutil.rmtree(directory)


@pytest.fixture
def one_rank(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
