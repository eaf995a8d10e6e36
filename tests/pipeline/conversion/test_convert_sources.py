"""Sources that are read in place: folders and tars give their images, and no file outside of them."""

import os
import pickle
import tarfile

import numpy as np
import pytest

from pipeline.conversion.keys import unique_keys
from pipeline.dataset.folder import scan_folder
from pipeline.dataset.open import open_dataset
from pipeline.dataset.shards import Record, _check, _header, pack
from support.small_datasets import PNG, error_of, same, write
from support.source_files import image, images_of, opened, tar


def odd_member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


# ---------------------------------------------------------------------------------------------- keys


def test_keys_are_unique_and_valid_webdataset_keys():
    names = ["a/x", "a/x", "A/X", "a/x-2", "b.c/x.y z", "b.c/x_y_z", "caf\udce9", "new\nline", "", "n" * 300, "n" * 301]
    names += ["f" * 200 + "/1", "f" * 200 + "/2", "\u56fe" * 80]
    keys = list(unique_keys(names))
    assert keys[:6] == ["a/x", "a/x-2", "A/X-3", "a/x-2-2", "b.c/x_y_z", "b.c/x_y_z-2"]
    assert len({key.casefold() for key in keys}) == len(names)
    assert list(unique_keys(names)) == keys
    for key in keys:
        _check(Record(key, b"", "jpeg", 0))
        _header(f"{key}.jpeg", 1)  # raises if it is too long


# ---------------------------------------------------------------------------------------------- folder


def test_a_folder_of_images(tmp_path):
    root = write(
        tmp_path / "root", {"b/x y.1.png": image(1), "a/1.png": image(2), "a/1.jpg": image(3), "top.png": b"?"}
    )
    entries = opened(root, tmp_path)
    assert images_of(entries) == {
        "top": (b"?", -1), "a/1": (image(3), "a"), "a/1-2": (image(2), "a"), "b/x_y_1": (image(1), "b"),
    }  # fmt: skip
    assert (entries.kind, set(entries.length), not entries.shape.any()) == ("folder", {-1}, True)


def test_entries_pickle_and_read_in_any_order(tmp_path):
    entries = opened(write(tmp_path / "root", {f"{i}.png": image(i) for i in range(4)}), tmp_path)
    again = pickle.loads(pickle.dumps(entries))
    assert again.read(np.array([2, 0, 2, 3])) == [image(2), image(0), image(2), image(3)]
    os.unlink(tmp_path / "root" / "1.png")
    with pytest.raises(FileNotFoundError):
        again.read([0, 1])


def test_the_fingerprint_is_of_the_files_and_not_of_the_place(tmp_path):
    root = write(tmp_path / "root", {"a.png": PNG, "b.png": PNG})
    prints = [opened(root, tmp_path).fingerprint()]
    root = root.rename(tmp_path / "moved")
    assert opened(root, tmp_path).fingerprint() == prints[0]
    for change in ({"a.png": PNG + b"1"}, {"c.png": PNG}):
        prints.append(opened(write(root, change), tmp_path).fingerprint())
    assert len(set(prints)) == 3


# ---------------------------------------------------------------------------------------------- tars


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_class_in_a_plain_tar_is_the_first_folder(tmp_path, style):
    members = [
        ("b/" + "n" * 90 + ".png", image(1)),
        ("a/deep/2.png", image(2)),
        ("3.JPG", image(3)),
        ("a/notes.txt", b""),
    ]
    entries = opened(tar(tmp_path / "x.tar", members, style), tmp_path)
    assert [value[1] for value in images_of(entries).values()] == ["b", "a", -1]
    assert entries.read([2, 0, 1]) == [image(3), image(1), image(2)]
    assert (entries.kind, entries.keys[1]) == ("tar", "a/deep/2")


def test_a_tar_made_of_a_folder_has_its_sub_folders_as_classes(tmp_path):
    root = write(tmp_path / "train", {"a/1.png": image(1), "b/2.png": image(2)})
    for name, inside in (("one.tar", "train"), ("two.tar", ".")):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(root, inside)
        assert [label for _, label in images_of(opened(tmp_path / name, tmp_path)).values()] == ["a", "b"]


def test_webdataset_tars_keep_their_numbers(tmp_path):
    pack([(f"{i:02d}", image(i), "png", 5 - i if i else -1) for i in range(5)], tmp_path / "w", "some", max_count=2)
    images = images_of(opened(tmp_path / "w", tmp_path))
    assert list(images.values()) == [(image(i), 5 - i if i else -1) for i in range(5)]
    members = [("1.png", PNG), ("1.json", b'{"label": 7}'), ("2.json", b"{"), ("2.png", PNG), ("3.png", PNG)]
    entries = opened(tar(tmp_path / "j.tar", [*members, ("3.json", b'{"label": null}')]), tmp_path)
    assert (entries.kind, entries.label.tolist(), entries.classes) == ("webdataset", [7, -1, -1], ())


def test_a_stray_json_makes_no_webdataset(tmp_path):
    members = [("a/1.png", image(1)), ("b/2.png", image(2)), ("info.json", b'{"label": 3}')]
    entries = opened(tar(tmp_path / "x.tar", members), tmp_path)
    assert (entries.kind, entries.label.tolist(), entries.classes) == ("tar", [0, 1], ("a", "b"))


def test_shards_with_equal_keys_stay_apart(tmp_path):
    for shard in range(2):
        tar(tmp_path / f"{shard}.tar", [("0.png", image(shard))])
    entries = opened(tmp_path / "*.tar", tmp_path)
    assert images_of(entries) == {"0": (image(0), -1), "0-2": (image(1), -1)}


def test_the_tars_in_ilsvrc2012s_train_tar_are_its_classes(tmp_path):
    synsets = ("n01440764", "n01443537", "n15075141")
    for number, synset in enumerate(synsets):
        members = [(f"{synset}_{i}.JPEG", image(10 * number + i)) for i in range(3)]
        tar(tmp_path / f"{synset}.tar", members)
    inner = [(f"{synset}.tar", (tmp_path / f"{synset}.tar").read_bytes()) for synset in synsets]
    expected = {
        f"{synset}/{synset}_{i}": (image(10 * number + i), synset)
        for number, synset in enumerate(synsets)
        for i in range(3)
    }
    (tmp_path / "one").mkdir()
    entries = opened(tar(tmp_path / "one" / "ILSVRC2012_img_train.tar", inner), tmp_path, workers=2)
    assert images_of(entries) == expected
    assert entries.classes == synsets
    assert not (tmp_path / "spool").exists()
    assert images_of(opened(tmp_path / "*.tar", tmp_path)) == expected  # unpacked by one level, which is common


def test_ilsvrc2012s_flat_validation_tar_has_no_labels(tmp_path):
    members = [(f"ILSVRC2012_val_0000000{i}.JPEG", image(i)) for i in range(3)]
    entries = opened(tar(tmp_path / "ILSVRC2012_img_val.tar", members), tmp_path)
    assert (entries.label.tolist(), entries.classes) == ([-1] * 3, ())


def test_a_tar_cannot_lead_outside(tmp_path):
    secret = write(tmp_path, {"secret.png": PNG}) / "secret.png"
    members = [
        ("good.png", image(1)), (str(secret), image(2)), ("../up.png", image(3)), ("a/../../b.png", image(4)),
        odd_member("symbolic.png", tarfile.SYMTYPE, str(secret)), odd_member("hard.png", tarfile.LNKTYPE, "good.png"),
        odd_member("pipe.png", tarfile.FIFOTYPE), odd_member("disk.png", tarfile.BLKTYPE),
        odd_member("tty.png", tarfile.CHRTYPE), ("x.tar.gz", b""), (".hidden.png", PNG), ("._good.png", PNG),
        ("in.tar", tar(tmp_path / "in", [("../1.png", PNG), ("deep.tar", b""), ("2.png", image(5))]).read_bytes()),
    ]  # fmt: skip
    entries = opened(tar(tmp_path / "x.tar", members), tmp_path)
    assert images_of(entries) == {"good": (image(1), -1), "in/2": (image(5), "in")}
    assert entries.refused == {
        f"x.tar:{secret}": "path outside", "x.tar:../up.png": "path outside", "x.tar:a/../../b.png": "path outside",
        "x.tar:symbolic.png": "link", "x.tar:hard.png": "link", "x.tar:pipe.png": "device", "x.tar:disk.png": "device",
        "x.tar:tty.png": "device", "x.tar:x.tar.gz": "compressed tar",
        "x.tar:in.tar:../1.png": "path outside", "x.tar:in.tar:deep.tar": "tar too deep",
    }  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("at", [0, 1536])  # of the first member's header, of the second's
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_tar_is_never_taken_for_a_shorter_one(tmp_path, nested, at, damage):
    members = [(f"{i}.png", bytes(600)) for i in range(3)]
    data = tar(tmp_path / "whole", members).read_bytes()
    bad = data[: at + 700] if damage == "cut" else data[:at] + b"\xff" * 512 + data[at + 512 :]
    assert len(opened(tar(tmp_path / "good.tar", members), tmp_path)) == 3
    path = tmp_path / "bad.tar"
    if nested:
        tar(path, [("0.png", PNG), ("in.tar", bad), ("1.png", PNG)])
    else:
        path.write_bytes(bad)
    assert "bad.tar: " in error_of(opened, path, tmp_path)


# ---------------------------------------------------------------------------------------------- mistakes


def test_a_table_by_itself_can_be_trained_from(tmp_path):
    """The table that conversion to an index writes."""
    table = scan_folder(write(tmp_path / "root", {"a/1.png": PNG, "b/2.png": PNG}), progress=False)
    table.save(tmp_path / "index.npz")
    assert same(open_dataset(tmp_path / "index.npz", tmp_path / "cache", workers=1, progress=False), table)
    assert not (tmp_path / "cache").exists()


def test_a_path_that_is_no_source_is_one_line(tmp_path):
    write(
        tmp_path,
        {
            "x.zip": b"PK",
            "packed/1.tar.gz": b"",
            "empty/notes.txt": b"",
            "two/a.beton": b"",
            "two/b.beton": b"",
            "y.tar.gz": b"no",
        },
    )
    tar(tmp_path / "none.tar", [("notes.txt", b"")])
    with tarfile.open(tmp_path / "z.tgz", "w:gz") as archive:
        archive.add(tmp_path / "x.zip", "1.png")
    for name, message in {
        "gone": "no such file or folder", "gone-*.tar": "no such file or folder", "x.zip": "not a source of images",
        "empty": "no images found", "none.tar": "no images found", "two": "(a.beton, b.beton); name one",
        "y.tar.gz": "damaged archive", "packed": "unpack them", "z.tgz": "unpack it", "x.zip/a": "x.zip",
    }.items():  # fmt: skip
        line = error_of(opened, tmp_path / name, tmp_path)
        assert line.startswith(f"{tmp_path / name}: ")
        assert message in line
