"""The loader: rows accounted for, exact resume, bad images replaced, nothing left running."""

import threading

import numpy as np
import pytest
import torch

from pipeline.crops import Blur, Crops, Jitter, View
from pipeline.dataset.open import DatasetError, open_dataset
from pipeline.ledger import Ledger
from pipeline.loader import BACKENDS, Loader, _Producer
from support.photos import flat_colors, write_folder

CROPS = Crops(
    views=(View(16, (0.3, 1.0)),) * 2 + (View(8, (0.1, 0.3)),),
    jitter=Jitter(saturation=0, hue=0),
    grayscale=0.0,
    blur=Blur(probability=0.0),
)
BOTH = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("images"), flat_colors(50, side=20))
    return open_dataset(root, tmp_path_factory.mktemp("tables"), workers=1, progress=False)


def loaders(table, world_size, backend="dali", **options):
    options = {"seed": 9, "global_batch": 12} | options
    return [
        Loader(table, CROPS, backend=backend, rank=rank, world_size=world_size, **options) for rank in range(world_size)
    ]


@BOTH
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_row_is_drawn_once_in_each_of_three_epochs(table, backend, world_size):
    ranks = loaders(table, world_size, backend)
    epochs = []
    for _ in range(3):
        drawn = []
        for loader in ranks:
            steps = 0
            for batch in loader:
                assert len(batch.rows) == 12 // world_size
                drawn += batch.rows.tolist()
                steps += 1
            assert steps == len(loader) == 4  # also from the second epoch on
        assert len(drawn) == len(set(drawn)) == 48  # 50 rows, the incomplete batch of 2 is dropped
        assert set(drawn) <= set(table.usable().tolist())
        epochs.append(sorted(drawn))
        total = [sum(values) for values in zip(*(split(loader.ledger) for loader in ranks), strict=True)]
        for loader in ranks:
            loader.account(lambda _, total=total: total)
    assert epochs[0] != epochs[1]  # other rows are dropped each time
    for loader in ranks:
        loader.close()


def split(ledger):
    return [ledger.count, ledger.checksum & 0xFFFFFFFF, ledger.checksum >> 32]


def test_a_row_drawn_twice_is_noticed(table):
    (loader,) = loaders(table, 1)
    for batch in loader:
        last = batch.rows
    loader.ledger = Ledger()
    loader.ledger.enter(np.concatenate([table.usable()[:47], last[:1]]))  # the right number, the wrong rows
    with pytest.raises(RuntimeError, match="epoch 0: 48 rows were drawn, 48 expected, or some rows were wrong"):
        loader.account(lambda values: values)
    loader.close()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 4), (4, 1), (1, 3)])
def test_resume_goes_on_with_the_next_row_on_any_world_size(table, before, after):
    """Stop after 2 of 4 steps, continue with another number of ranks: the rows of both epochs are as without a stop."""

    def rows(ranks, steps):
        iterators = [iter(loader) for loader in ranks]
        return [np.concatenate([next(iterator).rows for iterator in iterators]).tolist() for _ in range(steps)]

    (whole,) = loaders(table, 1)
    expected = [batch.rows.tolist() for _ in range(2) for batch in whole]
    whole.close()

    first = loaders(table, before)
    seen = rows(first, 2)
    state = first[0].state_dict(lambda values: values)
    for loader in first:
        loader.close()
    second = loaders(table, after)
    for loader in second:
        loader.load_state_dict(state)
    seen += rows(second, 2)
    for loader in second:
        assert list(loader) == []  # the epoch is over
        assert loader.position.epoch == 1
    seen += rows(second, 4)
    for loader in second:
        loader.close()
    assert seen == expected


def test_crops_after_a_resume_are_bit_for_bit_the_same(table):
    (whole,) = loaders(table, 1)
    batches = list(whole)
    whole.close()
    (resumed,) = loaders(table, 1)
    resumed.load_state_dict({"epoch": 0, "samples": 24, "count": 24, "checksum": 0})
    rest = list(resumed)
    resumed.close()
    assert len(rest) == 2
    for one, other in zip(batches[2:], rest, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        for a, b in zip(one.crops, other.crops, strict=True):
            assert torch.equal(a, b)


def broken_folder(tmp_path, break_file):
    """24 images, one of which becomes bad after the table is made."""
    root = write_folder(tmp_path / "images", flat_colors(24, side=20))
    table = open_dataset(root, tmp_path / "tables", workers=1, progress=False)
    victim = table.root / table.containers[int(table.container[5])]
    break_file(victim)
    return table


@BOTH
@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_an_image_that_goes_bad_is_replaced_and_named(tmp_path, backend, how):
    def break_file(path):
        if how == "deleted":
            path.unlink()
        else:  # the same length, so that only decoding reveals it
            path.write_bytes(path.read_bytes()[:40] + bytes(path.stat().st_size - 40))

    table = broken_folder(tmp_path, break_file)
    loader = Loader(table, CROPS, backend=backend, seed=9, global_batch=12, max_bad_fraction=0.1)
    drawn = []
    for _ in range(2):
        for batch in loader:
            drawn += batch.rows.tolist()
            assert all(torch.isfinite(group).all() for group in batch.crops)
    loader.close()
    assert sorted(drawn) == sorted(table.usable().tolist() * 2)  # the order has not changed
    assert list(loader.bad) == [table.name(5)]


def test_too_many_bad_images_end_the_run_by_name(tmp_path):
    table = broken_folder(tmp_path, lambda path: path.unlink())
    loader = Loader(table, CROPS, backend="dali", seed=9, global_batch=12, max_bad_fraction=0.0)
    with pytest.raises(DatasetError, match=r"1 of 24 images could not be read, the last was .*max_bad_fraction"):
        list(loader)
    loader.close()


def test_closing_stops_the_threads(table):
    before = set(threading.enumerate())
    (loader,) = loaders(table, 1)
    next(iter(loader))
    started = set(threading.enumerate()) - before
    assert "loader" in {thread.name for thread in started}
    loader.close()
    assert not [thread for thread in started if thread.is_alive() and thread.name.startswith(("loader", "reader"))]
    assert len(next(iter(loader)).rows)  # it opens again
    loader.close()


def test_an_error_comes_again_when_the_loader_is_asked_again(tmp_path):
    loader = Loader(
        broken_folder(tmp_path, lambda path: path.unlink()), CROPS, backend="dali", seed=9, global_batch=12,
        max_bad_fraction=0.0,
    )  # fmt: skip
    for _ in range(3):
        with pytest.raises(DatasetError, match="could not be read"):
            list(loader)
    loader.close()


def test_a_batch_larger_than_the_dataset_is_an_error(table):
    with pytest.raises(ValueError, match="batch_size=64 is more than the 50 usable images"):
        Loader(table, CROPS, backend="dali", seed=0, global_batch=64)


def test_a_batch_that_does_not_split_over_the_ranks_is_an_error(table):
    with pytest.raises(ValueError, match="batch_size=12 does not split evenly over 5 processes"):
        Loader(table, CROPS, backend="dali", seed=0, global_batch=12, world_size=5)


def test_the_loaders_thread_takes_the_ranks_gpu_before_anything_else():
    """A thread begins on GPU 0. There is no GPU 99, so taking it must fail, and before the first batch is made."""
    made = []
    producer = _Producer((made.append(number) for number in range(3)), device_id=99)
    with pytest.raises(RuntimeError):
        producer.take()
    producer.close()
    assert made == []


@BOTH
def test_a_loader_passes_its_gpu_to_its_thread(table, backend, monkeypatch):
    """Reading the first image would come before the backend's own error for a GPU that is not there."""
    if backend == "ffcv":
        monkeypatch.setattr("pipeline.backends.ffcv.finish_on_gpu", None)
    (loader,) = loaders(table, 1, backend, device_id=99)
    reads = []
    monkeypatch.setattr(loader.feed, "request", lambda *_: reads.append(1))
    with pytest.raises(RuntimeError):
        next(iter(loader))
    loader.close()
    assert reads == []
