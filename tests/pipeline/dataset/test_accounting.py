"""What became of every file is in the table, and is said at every start and beside every figure that it affects."""

import json

import numpy as np
import pytest

from pipeline.dataset.accounting import accounting, in_one_line, losses, of_splits
from pipeline.dataset.labelled import labelled_data
from pipeline.dataset.open import open_dataset
from pipeline.dataset.table import SampleTable
from support.conversions import converted
from support.small_datasets import PNG, packed, write
from training.report import closing_table

FILES = {"a/1.png": PNG, "a/2.png": PNG[:60], "b/3.png": PNG, "b/4.psd": b"?", "notes": b"?", ".hidden.png": PNG}
LINE = "2 images, 2 labeled (2 classes); left out: 2 (.psd 1, no extension 1); 1 of 3 images quarantined (1 truncated)"


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "root", FILES)


def said(path, tmp_path, capsys):
    """The lines of a start, without the progress bars."""
    open_dataset(path, tmp_path / "cache", workers=1, progress=True)
    return [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "images," in line]


def as_version_1(path):
    """Make a table one of an older program."""
    stored = dict(np.load(path))
    texts = json.loads(stored["texts"].tobytes())
    old = json.dumps({name: texts[name] for name in ("root", "fingerprint")}).encode()
    np.savez(path, **stored | {"version": np.int64(1), "texts": np.frombuffer(old, np.uint8)})
    assert SampleTable.load(path).left_out is None


def test_one_line_is_said_at_every_start(root, tmp_path, capsys):
    first = said(root, tmp_path, capsys)
    assert first == said(root, tmp_path, capsys)
    manifest = next((tmp_path / "cache").glob("*.json"))
    assert first == [f"data.path={root}: {LINE}, their names are in {manifest}"]


def test_an_old_cached_table_does_not_hide_it(root, tmp_path, capsys):
    said(root, tmp_path, capsys)
    as_version_1(next((tmp_path / "cache").glob("*.npz")))
    assert len(said(root, tmp_path, capsys)) == 1
    table = open_dataset(root, tmp_path / "cache", workers=1, progress=False)
    assert "scanning again" not in capsys.readouterr().err
    assert table.left_out == {".psd": 1, "no extension": 1}


@pytest.mark.parametrize("kind", ["wds", "beton", "index"])
def test_what_conversion_lost_is_said_of_its_output(root, tmp_path, capsys, kind):
    out = tmp_path / {"wds": "out", "beton": "out.beton", "index": "out.npz"}[kind]
    converted(root, out, kind)
    lost = {".psd": 1, "no extension": 1} | ({"truncated": 1} if kind != "index" else {})
    for _ in range(2):
        table = open_dataset(out, tmp_path / "cache", workers=1, progress=False)
        assert (table.left_out, len(table.quarantine)) == (lost, int(kind == "index"))
        as_version_1({"wds": out / "table.npz", "beton": out.with_suffix(".npz"), "index": out}[kind])


def test_an_old_table_without_a_report_says_so(tmp_path, capsys):
    packed(tmp_path / "p")
    as_version_1(tmp_path / "p" / "table.npz")
    (line,) = said(tmp_path / "p", tmp_path, capsys)
    assert line.endswith("7 images, 7 labeled (3 classes); left out: not known (a table of an older version)")


def test_files_beside_shards_are_counted_at_each_start(tmp_path):
    packed(tmp_path / "p")
    for names in ({}, {"x.txt": b""}, {"y.tar": b""}):
        write(tmp_path / "p", names)
        table = open_dataset(tmp_path / "p", tmp_path / "cache", workers=1, progress=False)
    assert table.left_out == {".txt": 1, ".tar": 1}


def test_a_figure_stands_beside_what_it_leaves_out(root, tmp_path):
    whole = open_dataset(write(tmp_path / "whole", {"a/1.png": PNG}), tmp_path / "cache", workers=1, progress=False)
    table = open_dataset(root, tmp_path / "cache", workers=1, progress=False)
    assert losses(of_splits(whole, None)) == []
    assert losses(of_splits(whole, table)) == [f"test images: {LINE}"]
    assert in_one_line(accounting(table)) == LINE
    summary = {"directory": "x", "epochs": 1, "steps": 1, "knn": 0.5, "knn_random_init": None, "prototypes_in_use": 1}
    summary |= {"prototypes": 1, "code_entropy": 0, "code_entropy_limit": 0, "mean_loss": 0, "images_per_second": 1}
    summary |= {"seconds": 1, "data": of_splits(whole, table)}
    assert closing_table(summary).splitlines()[-1] == f"test images: {LINE}"
    assert "test images" not in closing_table(summary | {"data": of_splits(whole, None)})


def test_images_of_a_class_that_cannot_be_learned_are_counted_beside_the_figure(root, tmp_path):
    whole = open_dataset(write(tmp_path / "whole", {"a/1.png": PNG}), tmp_path / "cache", workers=1, progress=False)
    table = open_dataset(root, tmp_path / "cache", workers=1, progress=False)  # classes a and b
    always_wrong = "scored without a training image of their class, and so always wrong: 1"
    assert losses(of_splits(whole, table, labelled_data(whole, table))) == [f"test images: {LINE}; {always_wrong}"]
    (line,) = losses(of_splits(table, None, labelled_data(table, None)))  # one of the two images is held out
    assert line == f"train images: {LINE}; {always_wrong}"
    assert losses(of_splits(whole, None, labelled_data(whole, whole))) == []
