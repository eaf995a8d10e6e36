"""Columns of Parquet files: labels of any type, matched by name across files, and the choice of images and labels."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.finding.labels import class_names, label_of, numbered
from support.conversions import converted, run
from support.packed_sources import ROWS
from support.small_datasets import error_of
from support.source_files import opened


def write_table(path, labels=None, names=None, **columns):
    """Rows with an image and a label each; names: class names in the metadata, as of `datasets`."""
    count = len(next(iter([*columns.values(), labels] if labels is not None else columns.values())))
    cells = {"image": pa.array(ROWS[:count])} | ({"label": labels} if labels is not None else {}) | columns
    table = pa.table(cells)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(table, path)
    return path


def names_of(entries):
    return [entries.classes[label] if label >= 0 else None for label in entries.label]


TEXT = pa.array(["dog", "cat", None, "dog"])
LABELS = {
    "text": (TEXT, ("cat", "dog"), [1, 0, -1, 1]),
    "large text": (TEXT.cast(pa.large_string()), ("cat", "dog"), [1, 0, -1, 1]),
    "categories": (TEXT.dictionary_encode(), ("cat", "dog"), [1, 0, -1, 1]),
    "bytes": (TEXT.cast(pa.binary()), ("cat", "dog"), [1, 0, -1, 1]),
    "floats": (pa.array([3.0, float("nan"), None, 0.0]), (), [3, -1, -1, 0]),
    "booleans": (pa.array([True, False, None, True]), (), [1, 0, -1, 1]),
    "digits": (pa.array(["10", "9", "-1", ""]), (), [10, 9, -1, -1]),
    "digits and names": (pa.array(["747", "A320", "747", "MD-11"]), ("747", "A320", "MD-11"), [0, 1, 0, 2]),
    "small integers": (pa.array([5, None, -1, 0], pa.int8()), (), [5, -1, -1, 0]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_type_are_taken(tmp_path, kind):
    column, classes, numbers = LABELS[kind]
    entries = opened(write_table(tmp_path / "x.parquet", column), tmp_path)
    assert (entries.classes, entries.label.tolist()) == (classes, numbers)


@pytest.mark.parametrize("place", ["labels", "path of the image"])
def test_text_that_is_no_utf_8_is_damage(tmp_path, place):
    bad = pa.array([b"\xff\x91", b"dog"])
    text = bad.view(pa.string())  # as a damaged file holds it
    if place == "path of the image":
        cells = pa.StructArray.from_arrays([pa.array([row["bytes"] for row in ROWS[:2]]), text], ["bytes", "path"])
        path = write_table(tmp_path / "x.parquet", pa.array([0, 1]), image=cells)
    else:
        path = write_table(tmp_path / "x.parquet", text)
    code, _, errors = run(path, tmp_path / "out", "--format", "wds")
    assert code == 2 and errors.count("\n") == 1 and "x.parquet" in errors, errors


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0.5, 1.0]), "row 0: label 0.5 is not a class number"),
        (pa.array([float("inf"), 1.0]), "row 0: label inf is not a class number"),
        (pa.array([1, -2]), "row 1: label -2 is not a class number"),
        (pa.array(["x" * 300, "y"]), "is not a class"),
        (pa.array([[1], [2]]), "the column label holds list<"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, column, message):
    path = write_table(tmp_path / "x.parquet", column)
    line = error_of(opened, path, tmp_path)
    assert message in line and "--label=none" in line
    assert opened(path, tmp_path, choice=Choice(None, "none")).label.tolist() == [-1, -1]


def test_class_names_of_several_files_are_matched_by_name(tmp_path):
    root = tmp_path / "data"
    write_table(root / "0.parquet", pa.array([0, 1]), ["cat", "dog"])
    write_table(root / "1.parquet", pa.array([0, 1]), ["dog", "owl"])
    write_table(root / "2.parquet", pa.array(["owl", "ant"]))
    entries = opened(root, tmp_path)
    assert entries.classes == ("cat", "dog", "owl", "ant")
    assert names_of(entries) == ["cat", "dog", "dog", "owl", "owl", "ant"]
    write_table(root / "3.parquet", pa.array([0, 1]))
    assert "3.parquet has labels that are numbers, other files have names of classes" in error_of(
        opened, root, tmp_path
    )


def test_texts_of_several_files_are_numbered_together(tmp_path):
    write_table(tmp_path / "d" / "0.parquet", pa.array(["b", "c"]))
    write_table(tmp_path / "d" / "1.parquet", pa.array(["a", "b"]))
    assert names_of(opened(tmp_path / "d", tmp_path)) == ["b", "c", "a", "b"]
    write_table(tmp_path / "d" / "2.parquet", pa.array([1, 2]))
    assert "some labels are names ('c'), others numbers (1)" in error_of(opened, tmp_path / "d", tmp_path)


def test_a_number_beyond_the_class_names_is_refused(tmp_path):
    path = write_table(tmp_path / "x.parquet", pa.array([0, 2]), ["cat", "dog"])
    assert "row 1: label 2 of only 2 class names" in error_of(opened, path, tmp_path)


def test_several_columns_ask_which(tmp_path):
    images = pa.array(ROWS[2:4])
    path = write_table(tmp_path / "x.parquet", left=images, target=pa.array([3, 4]), category=pa.array(["a", "b"]))
    assert "(target, category); choose with --label=target, or --label=none" in error_of(opened, path, tmp_path)
    entries = opened(path, tmp_path, choice=Choice("left", "category"))
    assert (entries.classes, entries.read([0, 1])) == (("a", "b"), [row["bytes"] for row in ROWS[2:4]])
    entries = opened(path, tmp_path, choice=Choice(None, "target"))  # the column called image
    assert (entries.label.tolist(), entries.read([0, 1])) == ([3, 4], [row["bytes"] for row in ROWS[:2]])
    assert "--image=x: no images of this name; there are image, left" in error_of(
        opened, path, tmp_path, choice=Choice("x", "none")
    )
    table = parquet.read_table(path).rename_columns(["one", "two", "target", "other"])
    parquet.write_table(table, path)
    assert "several images (one, two); choose with --image=one" in error_of(opened, path, tmp_path)


def test_a_column_that_could_be_the_label_is_named(tmp_path):
    path = write_table(tmp_path / "x.parquet", species=pa.array(["b", "a"]), width=pa.array([1, 2]))
    code, _, errors = run(path, tmp_path / "x.beton", "--format", "beton", "--workers", 1)
    assert code == 0
    assert "no column is called label, so no image is labeled; --label can name one of species, width" in errors
    code, _, errors = run(path, tmp_path / "y.beton", "--format", "beton", "--workers", 1, "--label", "species")
    assert (code, "labeled" in errors) == (0, False)


@pytest.mark.parametrize("column", ["split", "subset", "is_test"])
def test_a_column_that_says_several_splits_is_refused(tmp_path, column):
    said = pa.array([True, False] if column == "is_test" else ["train", "validation"])
    path = write_table(tmp_path / "x.parquet", pa.array([0, 1]), **{column: said})
    assert f"its column {column} says that it holds several splits (" in error_of(opened, path, tmp_path)
    assert len(opened(path, tmp_path, choice=Choice("image"))) == 2
    write_table(tmp_path / "one.parquet", pa.array([0, 1]), **{column: said.take([0, 0])})
    assert len(opened(tmp_path / "one.parquet", tmp_path)) == 2


def test_files_with_other_columns_are_refused(tmp_path):
    write_table(tmp_path / "d" / "0.parquet", pa.array([0, 1]))
    write_table(tmp_path / "d" / "1.parquet", target=pa.array([0, 1]))
    assert "1.parquet has the columns image, target, and 0.parquet image, label" in error_of(
        opened, tmp_path / "d", tmp_path
    )


def test_a_row_with_an_empty_list_of_images_is_counted(tmp_path):
    cells = pa.array([ROWS[:2], [], ROWS[2:3]])
    path = write_table(tmp_path / "x.parquet", pa.array([1, 0, 1]), image=cells)
    report = converted(path, tmp_path / "out", "wds")
    assert (report.images, report.written, list(report.quarantined.values())) == (4, 3, ["zero bytes"])


def test_a_label_is_a_number_a_name_or_none():
    values = [3, 3.0, True, "3", b"3.0\n", "cat", b" cat ", None, float("nan"), -1, "-1", "", "  "]
    expected = [3, 3, 1, 3, 3, "cat", "cat", None, None, None, None, None, None]
    assert [label_of(value, "x") for value in values] == expected
    assert label_of("3", "x", digits=True) == "3"
    for value in ("a\nb", "9" * 11, 2**31, -2, 1.5, [1], {"a": 1}, "x" * 201):
        assert error_of(label_of, value, "x: row 1").startswith("x: row 1: ")
    assert class_names([1, None, 0]) == class_names(["1", None]) == ()
    assert class_names(["b", None, "a", "1"]) == ("1", "a", "b")
    assert numbered(["b", None, "a"], ("a", "b")).tolist() == [1, -1, 0]
    assert numbered(["7", None], ()).tolist() == [7, -1]
