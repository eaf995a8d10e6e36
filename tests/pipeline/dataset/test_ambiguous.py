"""Sources that leave something open are refused with the setting that decides; training and conversion alike."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from pipeline.conversion.sources import open_source
from pipeline.dataset.finding.choice import Choice, several_images
from pipeline.dataset.open import open_dataset, open_splits
from support.conversions import converted
from support.small_datasets import PNG, error_of, write
from support.source_files import image, tar

MASKED = [
    member
    for i in range(4)
    for member in ((f"k{i}.png", image(i)), (f"k{i}.seg.png", image(9)), (f"k{i}.cls", b"%d" % i))
]


def trained_on(path, tmp_path, *choice):
    return open_dataset(path, tmp_path / "cache", workers=1, progress=False, choice=Choice(*choice))


def refused(path, tmp_path, *choice):
    """The error, which training and conversion have in common."""
    line = error_of(trained_on, path, tmp_path, *choice)
    other = error_of(open_source, path, tmp_path / "spool", progress=False, choice=Choice(*choice))
    for setting, option in (("data.path=", "SRC="), ("data.image", "--image"), ("data.label", "--label")):
        line = line.removeprefix("data.path=").replace(setting, option)
    assert line == other
    return line


# ---------------------------------------------------------------------------------------------- kinds of sources


@pytest.mark.parametrize("left", ["b.tar", "b.beton", "b.parquet", "train-images-idx3-ubyte"])
def test_a_file_of_another_kind_left_in_a_folder_of_classes(tmp_path, left):
    root = write(tmp_path / "root", {"a/1.png": PNG, "b/2.png": PNG, left: PNG})
    assert "beside images (a/1.png, ...); move the others away, or name those that you mean" in refused(root, tmp_path)


def test_several_kinds_of_sources_in_a_folder(tmp_path):
    root = write(tmp_path / "root", {"a.tar": PNG, "b.beton": PNG, ".c.arrow": b""})
    assert "holds several kinds of sources (1 tar, 1 beton files); name those that you mean" in refused(root, tmp_path)


def test_a_pattern_names_the_tars_among_images(tmp_path):
    root = write(tmp_path / "root", {"a/1.png": PNG})
    tar(root / "0.tar", [("1.png", image(1))])
    tar(root / "1.tar", [("1.png", image(2))])
    assert len(trained_on(root / "*.tar", tmp_path)) == len(open_source(root / "*.tar", tmp_path)) == 2


# ---------------------------------------------------------------------------------------------- folders


def test_a_folder_around_the_classes_is_no_class(tmp_path):
    root = write(tmp_path / "root", {"images/a/1.png": PNG, "images/b/x/2.png": PNG, "readme.txt": b""})
    line = refused(root, tmp_path)
    assert f"in images/, which would be the only class; give SRC={root / 'images'}" in line
    assert trained_on(root / "images", tmp_path).classes == ("a", "b")
    flat = write(tmp_path / "flat", {"All_Images/1.png": PNG, "All_Images/2.png": PNG})
    assert trained_on(flat, tmp_path).classes == ("All_Images",)
    flat = write(tmp_path / "around", {"Images/1.png": PNG, "Images/2.png": PNG})
    assert f"give SRC={flat / 'Images'}" in refused(flat, tmp_path)
    assert trained_on(flat / "Images", tmp_path).classes == ()


def test_the_setting_that_decides_is_named_also_for_the_test_set(tmp_path):
    root = write(tmp_path / "root", {"train/a/1.png": PNG, "train/b/2.png": PNG, "val/images/3.png": PNG})
    data = OmegaConf.create({"path": str(root), "test": None, "cache": str(tmp_path / "cache"), "workers": 1})
    assert f"data.test={root / 'val'}: " in (line := error_of(open_splits, data, False))
    assert line.endswith(f"; give data.test={root / 'val' / 'images'}")


def test_classes_that_all_hold_the_same_folders_are_told(tmp_path, capsys):
    plants = {f"{look}/{kind}/1.png": PNG for look in ("color", "gray") for kind in ("elm", "oak")}
    root = write(tmp_path / "root", plants)
    said = "its 2 classes (color, gray) hold the same folders (elm, oak); if these are the classes, "
    open_dataset(root, tmp_path / "cache", workers=1)
    assert f"{said}give data.path=[{root / 'color'},{root / 'gray'}]" in capsys.readouterr().err
    open_source(root, tmp_path / "spool")
    assert f"{said}convert one of them" in capsys.readouterr().err
    write(root, {"gray/ash/1.png": PNG})
    open_dataset(root, tmp_path / "cache", workers=1)
    assert said not in capsys.readouterr().err


@pytest.mark.parametrize(
    "folders", ["images masks", "JPEGImages SegmentationClass", "image labels", "imgs annotations", "imagesTr labelsTr"]
)
def test_folders_of_photographs_and_masks_are_no_classes(tmp_path, folders):
    photos, masks = folders.split()
    root = write(tmp_path / "root", {f"{photos}/1.png": PNG, f"{masks}/1.png": PNG})
    assert f"are no classes; give SRC={root / photos}" in refused(root, tmp_path)
    packed = tar(tmp_path / "x.tar", [(f"{folder}/1.png", PNG) for folder in (photos, masks)])
    assert f"are no classes; make a tar of {photos}/ alone" in refused(packed, tmp_path)
    write(root, {"cats/1.png": PNG})
    assert len(trained_on(root, tmp_path).classes) == 3


def test_a_folder_of_unlabeled_images_is_no_class(tmp_path):
    root = write(tmp_path / "root", {"labeled/a/1.png": PNG, "labeled/b/2.png": PNG, "unlabeled/3.png": PNG})
    line = refused(root, tmp_path)
    assert f"its folder unlabeled/ is no class (--label=none takes all images, without labels); give SRC={root}" in line
    assert trained_on(root, tmp_path, None, "none").label.tolist() == [-1] * 3
    around = write(tmp_path / "around", {"images/a/1.png": PNG, "images/b/2.png": PNG})
    for found in (
        trained_on(around, tmp_path, None, "none"),
        open_source(around, tmp_path, choice=Choice(None, "none")),
    ):
        assert found.label.tolist() == [-1] * 2


def test_folders_of_the_system_are_passed_over(tmp_path):
    names = [
        "a/1.png",
        "b/2.png",
        "a/@eaDir/1.png/THUMB.png",
        "__MACOSX/a/1.png",
        "$RECYCLE.BIN/3.png",
        "lost+found/x.txt",
    ]
    root = write(tmp_path / "root", dict.fromkeys(names, PNG))
    for path in (root, tar(tmp_path / "x.tar", [(name, PNG) for name in names])):
        table, entries = trained_on(path, tmp_path), open_source(path, tmp_path / "spool")
        assert (table.classes, table.label.tolist(), table.left_out) == (("a", "b"), [0, 1], {})
        assert (entries.classes, entries.label.tolist(), entries.left_out) == (("a", "b"), [0, 1], {})


@pytest.mark.parametrize("mask", ["k{}.seg.png", "k{}_mask.png", "k{}-depth.png", "k{} mask 1.png"])
def test_masks_beside_photographs_are_no_images(tmp_path, mask):
    files = {f"a/k{i}.jpg": PNG for i in range(4)} | {"a/" + mask.format(i): PNG for i in range(4)}
    root = write(tmp_path / "root", files)
    assert "4 images look like masks of others" in refused(root, tmp_path)
    table = trained_on(root, tmp_path, "jpg")
    assert (len(table), table.left_out) == (4, {".png": 4})
    assert len(trained_on(root, tmp_path, "all")) == len(open_source(root, tmp_path, choice=Choice("all"))) == 8
    assert "no image ends in .webp; there are " in refused(root, tmp_path, "webp")
    if "." not in mask.removesuffix(".png"):  # else a sample of several images
        packed = tar(tmp_path / "x.tar", list(files.items()))
        assert "4 images look like masks of others" in refused(packed, tmp_path)
        assert len(trained_on(packed, tmp_path, "jpg")) == 4


def test_names_with_dots_and_words_are_images(tmp_path):
    names = [
        "cat.1.jpg",
        "cat.2.jpg",
        "cat.jpg",
        "photo.final.jpg",
        "alpha.jpg",
        "my_label.png",
        "12.30.jpg",
        "12.31.jpg",
    ]
    assert len(trained_on(write(tmp_path / "root", dict.fromkeys(names, PNG)), tmp_path)) == 8


def test_a_choice_that_a_source_does_not_offer_is_refused(tmp_path):
    root = write(tmp_path / "root", {"a/1.png": PNG})
    assert "--label=x: the labels here have no name" in refused(root, tmp_path, None, "x")
    converted(root, tmp_path / "w", "wds")
    assert "--image=jpg: the samples here have one image each" in refused(tmp_path / "w", tmp_path, "jpg")
    converted(root, tmp_path / "x.beton", "beton")
    table = trained_on(tmp_path / "x.beton", tmp_path, None, "none")
    assert (table.label.tolist(), table.classes, (tmp_path / "cache").exists()) == ([-1], (), False)


MIXED = {
    "a/train/1.png a/test/2.png b/train/3.png b/test/4.png": "a/test, a/train",
    "a/train/1.png a/test/2.png b/3.png": "a/test, a/train",
    "train_1.png train_2.png test_1.png": "train_1.png, test_1.png",
    "COCO_train2014_1.png COCO_val2014_2.png": "COCO_train2014_1.png, COCO_val2014_2.png",
    "a/x1-train.png a/x2-dev.png b/x3-train.png": "x1-train.png, x2-dev.png",
    "a/1.png b/2.png train.txt test.txt": "train.txt, test.txt",
    "1.png 2.png train_list.txt train.csv val.csv": "train.csv, val.csv",
    "train_1.png bus_1.png test_1.png": "",
    "a/train_1.png b/train_2.png": "",
    "1.png train.txt notes.txt": "",
}


@pytest.mark.parametrize("names", MIXED)
def test_images_of_several_splits_are_not_mixed(tmp_path, names):
    images = [name for name in names.split() if name.endswith("png")]
    root = write(tmp_path / "root", dict.fromkeys(names.split(), b"") | dict.fromkeys(images, PNG))
    found, choice = MIXED[names], Choice("all") if MIXED[names] else Choice()
    if found:
        assert f"holds several splits ({found}); make a folder for each split" in refused(root, tmp_path)
    assert len(trained_on(root, tmp_path, choice.image)) == len(images)
    assert len(open_source(root, tmp_path, choice=choice)) == len(images)


@pytest.mark.parametrize(
    "name, text, found",
    [
        ("metadata.csv", "file_name,Split\n1.png,train\n2.png,test\n", "test, train"),
        ("all.tsv", "file\tis_train\n1.png\t1\n2.png\t0\n", "0, 1"),
        ("metadata.jsonl", '{"file_name": "1.png", "split": "training"}\n{"split": "val"}\n', "training, val"),
        ("metadata.csv", "file_name,split\n1.png,train\n2.png,train\n", ""),
        ("metadata.jsonl", '{"split": "train"}\n[]\n{"split": [1]}\n{"split', ""),
    ],
)
def test_a_column_of_a_table_beside_images_says_their_splits(tmp_path, name, text, found):
    root = write(tmp_path / "root", {"1.png": PNG, "2.png": PNG, name: text.encode()})
    if found:
        train, test = sorted(found.split(", "), key=lambda word: word in ("test", "val"))
        assert f"holds several splits ({train}, {test} in {name})" in refused(root, tmp_path)
    else:
        assert len(trained_on(root, tmp_path)) == 2


# ---------------------------------------------------------------------------------------------- tars


@pytest.mark.parametrize("layout", ["folders", "tars", "samples", "wrapped", "classes", "names", "fields"])
def test_splits_in_a_tar_are_no_classes(tmp_path, layout):
    inner = tar(tmp_path / "in", [("1.png", image(1))]).read_bytes()
    members = {
        "folders": [("train/a/1.png", PNG), ("valid/a/2.png", PNG)],
        "tars": [("train.tar", inner), ("test.tar", inner)],
        "samples": [("x-train/1.png", PNG), ("x-train/1.cls", b"0"), ("x-dev/2.png", PNG), ("x-dev/2.cls", b"0")],
        "wrapped": [("data/train/a/1.png", PNG), ("data/val/a/2.png", PNG)],
        "classes": [("a/train/1.png", PNG), ("a/val/2.png", PNG), ("b/3.png", PNG)],
        "names": [("train_1.png", PNG), ("test_1.png", PNG)],
        "fields": [("1.png", PNG), ("1.json", b'{"split": "train"}'), ("2.png", PNG), ("2.json", b'{"split": "val"}')],
    }
    path = tar(tmp_path / "x.tar", members[layout])
    assert "holds several splits (" in refused(path, tmp_path)
    assert len(trained_on(path, tmp_path, "all")) == 2 + (layout == "classes")


def test_a_sample_with_several_images_asks_which(tmp_path):
    path = tar(tmp_path / "x.tar", MASKED)
    line = refused(path, tmp_path)
    assert "its samples have several images (png 4, seg.png 4); choose with --image=png, or --image=all" in line
    table = trained_on(path, tmp_path, "png")
    assert (table.label.tolist(), table.left_out) == ([0, 1, 2, 3], {".png": 4})
    entries = open_source(path, tmp_path, choice=Choice("png"))
    assert (entries.label.tolist(), entries.left_out) == ([0, 1, 2, 3], {".png": 4})
    assert len(trained_on(path, tmp_path, "all")) == len(trained_on(path, tmp_path, "png,seg.png")) == 8
    assert "no image ends in .jpg; there are png, seg.png" in refused(path, tmp_path, "jpg")


def test_parts_of_a_name_are_no_kinds_of_images():
    assert several_images([[f"{name}.{i}.jpg" for name in ("cat", "dog") for i in range(50)]]) == []
    assert several_images([["1.jpg", "2.jpg"], ["1.jpg", "2.jpg"]]) == []  # the same keys in two shards
    assert several_images([["a/1.jpg", "b/1.png"]]) == []
    assert several_images([[f"photo.v{i}.jpg" for i in range(9)]]) == []
    assert several_images([["1.jpg", "1.mask.png"]]) == ["jpg", "mask.png"]
    assert several_images([[f"{i}.{view}.jpg" for i in range(9) for view in range(3)]]) == ["0.jpg", "1.jpg", "2.jpg"]
    assert several_images([[f"{i}.{kind}" for i in range(9) for kind in ("jpg", "png")]]) == ["jpg", "png"]


def test_joined_tars_are_read_to_the_end(tmp_path):
    first = tar(tmp_path / "a", [("0.png", image(0)), ("0.cls", b"3")]).read_bytes()
    second = tar(tmp_path / "b", [("1.png", image(1)), ("1.cls", b"4")]).read_bytes()
    path = tmp_path / "all.tar"
    path.write_bytes(first + second + bytes(3 << 20) + tar(tmp_path / "c", [("2.png", image(2))]).read_bytes())
    for found in (trained_on(path, tmp_path), open_source(path, tmp_path)):
        assert found.label.tolist() == [3, 4, -1]
    path.write_bytes(first + b"no tar" + bytes(506))
    assert f"all.tar: damaged at byte {len(first)}" in refused(path, tmp_path)


def test_a_member_that_a_later_one_overwrites(tmp_path):
    for name in ("0.png", "./0.png", "0.cls"):
        path = tar(
            tmp_path / "x.tar", [("0.png", image(0)), ("0.cls", b"0"), (name, image(1) if "png" in name else b"1")]
        )
        assert "it holds two files called 0." in refused(path, tmp_path)


def test_training_reads_tars_as_conversion_does(tmp_path):
    inner = tar(tmp_path / "in", [("3.png", image(3)), ("../4.png", PNG)]).read_bytes()
    path = tar(tmp_path / "x.tar", [("n1.tar", inner), ("n2.tar", inner), ("x.tar.gz", b""), ("a.txt", b"")])
    table, entries = trained_on(path, tmp_path), open_source(path, tmp_path)
    assert table.classes == entries.classes == ("n1", "n2")
    assert table.offset.tolist() == entries.offset.tolist()
    assert table.left_out == {"path outside": 2, ".txt": 1, "compressed tar": 1}
    plain = tar(tmp_path / "y.tar", [("data/b/1.png", image(1)), ("data/a/2.png", image(2))])
    assert trained_on(plain, tmp_path).classes == ("a", "b")


# ---------------------------------------------------------------------------------------------- labels of tars


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([b"cat", b" dog\n", b"cat"], ("cat", "dog"), [0, 1, 0]), ([b"2", b"-1", b"2.5"], (), None),
        ([b"7", b"-1", b""], (), [7, -1, -1]), ([b"3.0", b"2", b"-1.0"], (), [3, 2, -1]),
        ([b'"x'] * 3, ('"x',), [0, 0, 0]),
    ],
)  # fmt: skip
def test_labels_in_a_tar_are_numbers_or_names(tmp_path, labels, classes, numbers):
    path = tar(tmp_path / "x.tar", [m for i in range(3) for m in ((f"{i}.png", image(i)), (f"{i}.cls", labels[i]))])
    if numbers is None:
        assert "some labels are names ('2.5'), others numbers (2)" in refused(path, tmp_path)
        return
    table = trained_on(path, tmp_path)
    assert (table.classes, table.label.tolist()) == (classes, numbers)
    assert trained_on(path, tmp_path, None, "none").label.tolist() == [-1] * 3


def test_a_label_is_of_the_whole_name_where_a_key_has_dots(tmp_path):
    members = [
        ("p.v1.0.png", image(0)),
        ("p.v1.0.cls", b"3"),
        ("p.v1.1.png", image(1)),
        ("p.v1.1.json", b'{"label": 4}'),
    ]
    path = tar(tmp_path / "x.tar", [*members, ("k.png", image(2)), ("k.cls", b"5"), ("q.v1.cls", b"6")])
    for found in (trained_on(path, tmp_path), open_source(path, tmp_path)):
        assert (found.label.tolist(), found.left_out) == ([3, 4, 5], {"label without an image": 1})


def test_class_names_of_shards_are_matched_by_name(tmp_path):
    root = tmp_path / "w"
    root.mkdir()
    for shard, (one, two) in enumerate(((b"dog", b"cat"), (b"ant", b"dog"))):
        members = [("0.png", image(0)), ("0.cls", one), ("1.png", image(1)), ("1.cls", two)]
        tar(root / f"{shard}.tar", members)
    table = trained_on(root, tmp_path)
    assert [table.classes[label] for label in table.label] == ["dog", "cat", "ant", "dog"]


def test_a_label_can_be_any_name_in_the_json(tmp_path):
    about = [json.dumps({"label": i, "breed": f"b{i}", "both": None}).encode() for i in range(3)]
    path = tar(tmp_path / "x.tar", [m for i in range(3) for m in ((f"{i}.png", image(i)), (f"{i}.json", about[i]))])
    assert trained_on(path, tmp_path).label.tolist() == [0, 1, 2]
    assert trained_on(path, tmp_path, None, "breed").classes == ("b0", "b1", "b2")
    assert trained_on(path, tmp_path, None, "both").label.tolist() == [-1] * 3
    two = tar(tmp_path / "y.tar", [("0.png", image(0)), ("0.cls", b"4"), ("0.json", b'{"label": 5}')])
    assert "0 has two labels, 4 and 5; choose with --label=cls" in refused(two, tmp_path)
    lists = tar(tmp_path / "z.tar", [("0.png", image(0)), ("0.json", b'{"label": [1, 2]}')])
    assert "label [1, 2] is not a class number; write whole numbers or names" in refused(lists, tmp_path)


# ---------------------------------------------------------------------------------------------- train and test


def splits(tmp_path, path, test=None):
    data = {"path": str(path), "test": None if test is None else str(test), "cache": str(tmp_path / "t"), "workers": 1}
    return open_splits(OmegaConf.create(data), progress=False)


def test_the_test_set_is_not_the_training_set(tmp_path):
    root = write(tmp_path / "root", {"train/a/1.png": PNG, "val/a/2.png": PNG})
    (tmp_path / "link").symlink_to(root / "train")
    for test in (root / "train", tmp_path / "link"):
        assert "the same images as data.path" in error_of(splits, tmp_path, root, test)
    assert "the same images as data.path" in error_of(splits, tmp_path, root / "val", root / "val")
    assert len(splits(tmp_path, root, root / "val")[1]) == 1


def test_a_test_set_inside_the_training_set_is_refused(tmp_path):
    root = write(tmp_path / "root", {"a/1.png": PNG, "b/2.png": PNG})
    assert "is in data.path too, so test images would be images to learn from" in error_of(
        splits, tmp_path, root, root / "b"
    )
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        tar(shards / f"{number}.tar", [("1.png", image(number))])
    assert "1.tar is in data.path too" in error_of(splits, tmp_path, shards, shards / "1.tar")
    assert len(splits(tmp_path, shards / "0.tar", shards / "1.tar")[1]) == 1


def test_tars_are_a_pair_of_splits_by_their_names(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name, count in (("train-0.tar", 2), ("train-1.tar", 1), ("val-0.tar", 1)):
        tar(root / name, [(f"{i}.png", image(i)) for i in range(count)])
    train, test = splits(tmp_path, root)
    assert (len(train), len(test)) == (3, 1)


def test_names_and_numbers_are_not_taken_for_the_same_classes(tmp_path):
    root = write(tmp_path / "root", {"a/1.png": PNG, "b/2.png": PNG})
    numbers = tar(tmp_path / "x.tar", [("1.png", image(1)), ("1.cls", b"0")])
    names = tar(tmp_path / "y.tar", [("1.png", image(1)), ("1.cls", b"b")])
    assert "data.path has names of classes and data.test only numbers" in error_of(splits, tmp_path, root, numbers)
    assert splits(tmp_path, root, names)[1].label.tolist() == [1]


def test_what_conversion_packed_keeps_its_class_names(tmp_path):
    root = write(tmp_path / "root", {"dog/1.png": PNG, "cat/2.png": PNG, "cat/3.png": b"bad", "x.txt": b""})
    converted(root, tmp_path / "w", "wds", seed=None)
    table, entries = trained_on(tmp_path / "w", tmp_path), open_source(tmp_path / "w", tmp_path)
    assert (table.classes, entries.classes) == (("cat", "dog"), ("cat", "dog"))
    np.testing.assert_array_equal(table.label, entries.label)
    assert table.left_out == entries.left_out == {".txt": 1, "not an image": 1}
