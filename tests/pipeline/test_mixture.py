"""Mixtures: every epoch has the quotas of its cells exactly, and the order stays a function of seed and epoch."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.errors import ConfigError
from config.recipe import ROOT, load_config
from pipeline.crops import UNCHANGED, Crops, View
from pipeline.dataset.open import DatasetError, open_splits
from pipeline.draw import draw
from pipeline.loader import Loader
from pipeline.mixing.mixture import REPEAT, ROW, Mixture, draw_repeats, mixture_of, quotas, quotas_of
from pipeline.order import order, rank_rows
from support.photos import flat_colors, write_folder

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
CROPS = Crops(views=(View(16, (0.3, 1.0)),) * 2, **UNCHANGED)


def mixture_with(counts, weights, power):
    """One class a number of `counts`, alternately in two sources of these weights."""
    label = np.repeat(np.arange(len(counts)), counts)
    source = label % 2 * (len(counts) > 1)
    rows = np.arange(len(label)) * 3 + 1
    cell, quota = quotas_of(source, label, weights[: source.max() + 1], power)
    return Mixture(rows, cell, quota), source, label


@given(counts=COUNTS, power=st.sampled_from([0.0, 0.5, 1.0]), seed=SEEDS, epoch=st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_every_epoch_has_the_quota_of_each_cell_and_each_row_as_often_as_others(counts, power, seed, epoch):
    mixture, source, label = mixture_with(counts, [3.0, 1.0], power)
    codes = mixture.epoch(seed, epoch)
    rows, repeat = codes & ROW, codes >> REPEAT
    assert len(rows) == sum(counts) == mixture.quota.sum()
    weights = np.array([3.0, 1.0])[: source.max() + 1]
    for number, weight in enumerate(weights / weights.sum()):
        cells, first = np.unique(mixture.cell[source == number], return_index=True)
        share = np.array([counts[label[source == number][one]] for one in first], float) ** power
        own = mixture.quota[cells]
        assert abs(own.sum() - weight * sum(counts)) < 1
        assert (np.abs(own - own.sum() * share / share.sum()) < 1).all()
    times = Counter(rows.tolist())
    assert set(times) <= set(mixture.rows.tolist())
    for cell, quota in enumerate(mixture.quota.tolist()):
        own = [times[row] for row in mixture.rows[mixture.cell == cell].tolist()]
        assert sum(own) == quota and max(own) - min(own) <= 1
    for row, count in times.items():
        assert sorted(repeat[rows == row].tolist()) == list(range(count))


@given(counts=COUNTS, worlds=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_global_batches_do_not_depend_on_the_world_size_nor_on_where_a_run_begins(counts, worlds, seed):
    mixture, *_ = mixture_with([12, *counts], [1.0, 2.0], 0.5)
    whole = order(seed, 3, mixture.epoch(seed, 3))
    again = order(seed, 3, mixture.epoch(seed, 3))
    for start in range(0, len(whole) - 11, 12):
        parts = [rank_rows(again, start, 12, rank, worlds) for rank in range(worlds)]
        assert np.concatenate(parts).tolist() == whole[start : start + 12].tolist()


def test_each_image_comes_on_average_as_often_as_the_page_says():
    """Sources of 30 and 10 images with weights 1 and 3; in the first, classes of 24 and 6 by their square roots."""
    mixture, *_ = mixture_with([24, 10, 6], [1.0, 3.0], 0.5)
    mean = np.mean([np.bincount(mixture.epoch(7, e) & ROW, minlength=121)[mixture.rows] for e in range(2000)], axis=0)
    expected = np.repeat([7 / 24, 30 / 10, 3 / 6], [24, 10, 6])
    assert mixture.quota.tolist() == [7, 3, 30]  # of 40 images; cells are ordered by source
    np.testing.assert_allclose(mean, expected, atol=0.05)


def test_epochs_and_seeds_differ_and_numbers_are_pinned():
    """A change of these numbers breaks the resume of every run with a mixture."""
    mixture, *_ = mixture_with([24, 10, 6], [1.0, 3.0], 0.5)
    orders = [order(seed, epoch, mixture.epoch(seed, epoch)).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(one) for one in orders}) == 4
    assert [code & ROW for code in orders[0][:6]] == [85, 73, 97, 88, 88, 73]
    assert [code >> REPEAT for code in orders[0][:6]] == [1, 0, 2, 2, 0, 1]


@pytest.mark.parametrize(
    ("share", "total", "expected"),
    [([0.5, 0.5], 3, [2, 1]), ([0.2, 0.3, 0.5], 10, [2, 3, 5]), ([1 / 3] * 3, 100, [34, 33, 33])],
)
def test_quotas_are_whole_numbers_with_the_sum(share, total, expected):
    assert quotas(np.array(share), total).tolist() == expected


def test_repeats_of_an_image_have_other_crops_and_the_first_those_of_the_image():
    rows, size = np.array([5, 5, 5, 7]), np.full(4, 300)
    repeat = np.array([0, 1, 2, 0])
    drawn, plain = draw_repeats(CROPS, 3, 1, repeat, rows, size, size), draw(CROPS, 3, 1, rows, size, size)
    assert drawn.rows.tolist() == rows.tolist()
    np.testing.assert_array_equal(drawn.window[[0, 3]], plain.window[[0, 3]])
    assert len(np.unique(drawn.window[:3].reshape(3, -1), axis=0)) == 3


# ---- of real tables


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders by class: 24 and 6 images of a and b, 8 and 2 of b and c."""
    root, colors = tmp_path_factory.mktemp("images"), flat_colors(40, side=20)
    write_folder(root / "one" / "a", colors[:24])
    write_folder(root / "one" / "b", colors[24:30])
    write_folder(root / "two" / "b", colors[30:38])
    write_folder(root / "two" / "c", colors[38:])
    return root


def data_of(folders, *more, names=("one", "two")):
    paths = ",".join(str(folders / name) for name in names)
    settings = [f"data.path=[{paths}]", f"data.cache={folders / 'tables'}", "data.workers=1", *more]
    return load_config(["config/folder.yaml", *settings]).data


def test_several_paths_are_one_table_with_classes_by_name(folders):
    table, test = open_splits(data_of(folders), progress=False)
    assert test is None and len(table) == 40 and table.classes == ("a", "b", "c")
    assert np.bincount(table.label).tolist() == [24, 14, 2]
    assert table.sources == ((str(folders / "one"), 30), (str(folders / "two"), 10))
    assert mixture_of(table, None, "none") is None
    loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=8)
    rows = np.concatenate([batch.rows for batch in loader])
    assert sorted(rows.tolist()) == list(range(40)) and loader.of_sources() == {"images_0": 30, "images_1": 10}
    colors = {tuple(loader.feed.reader.decode(row)[0, 0].tolist()) for row in range(40)}
    loader.close()
    assert len(colors) == 40


def test_a_test_set_in_one_of_several_paths_is_said_to_be_in_no_use(folders, tmp_path, capsys):
    for split in ("train", "val"):
        write_folder(tmp_path / split, flat_colors(2, side=20))
    data = data_of(folders, names=("one", tmp_path))
    assert len(open_splits(data)[0]) == 32
    assert f"data.path={tmp_path}: splits and folders that are not used: val/" in capsys.readouterr().err


def test_a_loader_of_a_mixture_counts_and_resumes_exactly(folders, capsys):
    data = data_of(folders, "data.weights=[1,3]", "data.balance=class")
    table, _ = open_splits(data, progress=True)
    said = capsys.readouterr().err
    assert "one: 30 images, 10 in an epoch, each 0.208 to 0.833 times" in said
    assert "two: 10 images, 30 in an epoch, each 1.88 to 7.5 times" in said
    mixture = mixture_of(table, data.weights, data.balance)

    def loader(**options):
        return Loader(table, CROPS, backend="torchvision", seed=1, global_batch=8, mixture=mixture, **options)

    whole = loader()
    batches = [(batch.rows.tolist(), batch.crops[0].clone()) for _ in range(2) for batch in whole]
    assert whole.of_sources() == {"images_0": 10, "images_1": 30} and len(batches) == 10
    ranks = [loader(rank=rank, world_size=2) for rank in range(2)]
    for one in ranks:
        one.position.epoch, one.position.samples = 1, 16
    parts = [[(batch.rows.tolist(), batch.crops[0].clone()) for batch in one] for one in ranks]
    for step, (rows, crops) in enumerate(batches[7:]):
        assert parts[0][step][0] + parts[1][step][0] == rows
        views = [part[step][1].unflatten(0, (2, 4)) for part in parts]
        assert np.array_equal(np.concatenate(views, axis=1), crops.unflatten(0, (2, 8)))
    for one in (whole, *ranks):
        one.close()


def test_the_ledger_of_a_mixture_adds_up(folders):
    table, _ = open_splits(data_of(folders, "data.weights=[1,3]"), progress=False)
    mixture = mixture_of(table, [1, 3], "none")
    loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=8, mixture=mixture)
    list(loader)
    loader.account(lambda values: values)
    loader.close()


def test_tars_and_folders_are_mixed(folders, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for file in sorted((folders / "two" / "b").iterdir()):
            tar.add(file, f"b_{file.name}")
        for file in sorted((folders / "two" / "c").iterdir()):
            tar.add(file, f"c_{file.name}")
    data = data_of(folders)
    data.path = [str(folders / "one"), str(tmp_path / "x.tar")]
    data.label = "none"
    table, _ = open_splits(data, progress=False)
    loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=8)
    colors = {tuple(loader.feed.reader.decode(row)[0, 0].tolist()) for row in range(40)}
    loader.close()
    assert len(colors) == 40 and table.images == 40


@pytest.mark.parametrize("second", ["one", "one/a"])
def test_an_image_in_two_paths_is_one_line(folders, second):
    data = data_of(folders)
    data.path = [str(folders / "one"), str(folders / second)]
    with pytest.raises(DatasetError, match=r"/one too; give each image once, data.weights says how often"):
        open_splits(data, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.weights=[1,2,3]"], "data.weights=[1, 2, 3]: expected 2 numbers, one for each path of data.path"),
        (["data.weights=[1,-1]"], "data.weights=[1, -1]: expected a list of numbers (each more than 0) or null"),
        (["data.balance=power:2"], "data.balance=power:2: expected none, class or power:0.5"),
        (["data.balance=class", "method=deepclusterv2"], "data.balance=class: expected none with method=deepclusterv2"),
        (["data.balance=class", "data.neighbors=8"], "data.neighbors=8: expected 1 with data.weights or data.balance"),
        (["data.path=/x", "data.weights=[1]"], "data.weights=[1]: expected null for a data.path that is no list"),
    ],
)
def test_a_mistake_in_a_mixture_is_one_line(folders, settings, message):
    with pytest.raises(ConfigError) as caught:
        data_of(folders, *settings)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_images_without_a_class_cannot_be_balanced(folders):
    table, _ = open_splits(data_of(folders), progress=False)
    label = table.label.copy()
    label[:3] = -1
    with pytest.raises(DatasetError, match=r"^data.balance=class: 3 of 40 images have no class; give folders by class"):
        mixture_of(replace(table, label=label), None, "class")


def test_a_path_that_looks_like_a_list_is_a_path_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[a,b]").mkdir()
    demo = str(ROOT / "config" / "demo.yaml")
    assert load_config([demo, "data.path=[a,b]"]).data.path == "[a,b]"
    config = load_config([demo, "data.path=[a, ~/b]"])
    assert config.data.path[0] == "a" and not config.data.path[1].startswith("~")
    assert config.run.directory.endswith("-a-b")
