"""No image is lost because of its name: first bytes identify images, and all other files are counted."""

import json
import os

import pytest
from PIL import Image

from pipeline.dataset.images import formats
from pipeline.dataset.open import open_dataset
from pipeline.dataset.sniff import EXTENSIONS, HEAD, extension, in_words, looks_like_image
from support.conversions import converted, run, target
from support.odd_images import encode, scene
from support.small_datasets import BAD, ODD, PLAIN, error_of, write
from support.source_files import images_of, opened, tar

RGB = Image.fromarray(scene())
JPEG = PLAIN["rgb.jpg"]
GIF = encode(RGB.quantize(8), "GIF", save_all=True, append_images=[RGB.rotate(90).quantize(8)])
OTHERS = {
    "read.txt": b"a text",
    "labels.csv": b"1,2",
    "more.txt": b"",
    "LICENSE": b"MIT",
    "x.1234": b"?",
    "a.NEF": b"II*\0",
}
HIDDEN = {".hidden.dat": JPEG, ".cache/a.jpg": JPEG}
LEFT_OUT = {".txt": 2, ".csv": 1, "no extension": 2, ".nef": 1}


def misnamed():
    """Images with names that are wrong or have no extension."""
    files = {"anim.gif": GIF, "x.jfif": JPEG, "noext": JPEG, "x.dat": JPEG, "y.txt": JPEG, "a.b/z": PLAIN["rgb.png"]}
    for kind, suffix in (("AVIF", "avif"), ("JPEG2000", "jp2")):
        if kind in formats():
            files[f"x.{suffix}"] = encode(RGB, kind)
    return files


@pytest.mark.parametrize("name", PLAIN | ODD)
def test_every_image_that_is_decoded_is_known_by_its_first_bytes(name):
    assert looks_like_image("x", (PLAIN | ODD)[name][:HEAD])


def test_other_files_are_not_taken_for_images():
    heads = [
        b"",
        b"\xff\xd8",
        b"BMW is a car, and",
        b"P3 is a format",
        b"\0\0\0\x18ftypmp42",
        b"%PDF-1.7",
        b"RIFF\0\0\0\0WAVE",
    ]
    assert not any(looks_like_image("x", head) for head in heads)
    assert looks_like_image("x.tif", b"II*\0") and not looks_like_image("x.CR2", b"II*\0")  # Pillow: the thumbnail


def test_the_extensions_are_those_of_the_formats_that_are_decoded():
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*formats(), "MPO")}
    missing = known - set(EXTENSIONS)
    assert missing <= {".pfm"}  # floats, which have no defined white


def test_extensions_are_counted_in_few_kinds():
    names = (
        "a/b.TXT",
        "b.tar.gz",
        "none",
        "a.d/none",
        ".dot",
        "x.0001",
        "frame.2020-01-01",
        "a.mp4",
        "x.averylongsuffix",
    )
    extensions = [extension(name) for name in names]
    assert extensions == [".txt", ".gz"] + ["no extension"] * 5 + [".mp4", "no extension"]
    assert in_words({".csv": 1, ".txt": 2}) == "3 other files (.txt 2, .csv 1)"
    assert in_words({"no extension": 1}) == "1 other file (no extension 1)"
    assert in_words({f".x{number}": 1 for number in range(20)}).endswith(".x15 1, ...)")


@pytest.mark.parametrize("kind", ["beton", "wds", "index"])
def test_a_wrong_extension_is_no_reason(tmp_path, kind):
    files = misnamed()
    source = write(tmp_path / "source", files | OTHERS | HIDDEN | {"bad.dat": BAD["half.jpg"][0]})
    os.mkfifo(source / "pipe")  # opening it would wait for ever
    report = converted(source, target(tmp_path, kind), kind)
    assert report.written == len(files)
    assert report.quarantined == {"bad.dat": "truncated"}
    assert report.left_out == LEFT_OUT | {"no extension": 3}
    if kind != "index":
        assert report.kinds["animated: first frame"] == 1


def test_members_of_a_tar_are_looked_into(tmp_path):
    files = misnamed()
    inner = tar(tmp_path / "in", [("c", JPEG), ("d.txt", b"")]).read_bytes()
    members = [*files.items(), *OTHERS.items(), *HIDDEN.items(), ("n01.tar", inner)]
    entries = opened(tar(tmp_path / "x.tar", members), tmp_path)
    assert [value[0] for value in images_of(entries).values()] == [*files.values(), JPEG]
    assert (entries.left_out, entries.refused) == (LEFT_OUT | {".txt": 3}, {})


def test_other_files_in_the_folder_of_packed_ones_are_counted(tmp_path):
    folder = write(tmp_path / "w", {"0.idx": b"", "more/1.txt": b"", "more/2.txt": b"", "top.csv": b"", ".x.tar": b""})
    tar(folder / "0.tar", [("1.png", PLAIN["rgb.png"])])
    assert opened(folder, tmp_path).left_out == {".txt": 2, ".csv": 1}
    table = open_dataset(folder, tmp_path / "cache", workers=1, progress=False)
    assert (len(table), table.left_out) == (1, {".txt": 2, ".csv": 1})


def test_the_report_counts_the_files_left_out(tmp_path):
    source = write(tmp_path / "source", {"a.jpg": JPEG} | OTHERS)
    code, output, errors = run(source, tmp_path / "out", "--format", "wds", "--workers", 1)
    assert code == 0, errors
    assert "left out: 6 other files (.txt 2, no extension 2, .csv 1, .nef 1)" in output.splitlines()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["left_out"] == LEFT_OUT


def test_the_error_of_a_source_without_images_counts_its_files(tmp_path):
    line = error_of(opened, write(tmp_path / "source", OTHERS), tmp_path)
    assert "by their first bytes among 6 other files (.txt 2, no extension 2, .csv 1, .nef 1)" in line


def test_training_takes_the_images_that_conversion_takes(tmp_path):
    root = write(tmp_path / "root", misnamed() | OTHERS | HIDDEN)
    table = open_dataset(root, tmp_path / "cache", workers=1, progress=False)
    entries = opened(root, tmp_path)
    assert sorted(table.containers) == sorted(entries.files) == sorted(misnamed())
    assert table.left_out == entries.left_out == LEFT_OUT
    line = error_of(open_dataset, write(tmp_path / "no", OTHERS), tmp_path / "cache", workers=1, progress=False)
    assert "left out: 6 (.txt 2, no extension 2, .csv 1, .nef 1)" in line


def test_other_files_are_opened_again_only_when_they_change(tmp_path, monkeypatch):
    root = write(tmp_path / "root", {"a.jpg": JPEG, "x": JPEG, "y.txt": b""})

    def taken():
        table = open_dataset(root, tmp_path / "cache", workers=1, progress=False)
        return sorted(table.containers), table.left_out

    assert taken() == (["a.jpg", "x"], {".txt": 1})
    with monkeypatch.context() as context:
        context.setattr("pipeline.dataset.folder._head", None)  # opening a file would fail
        assert taken() == (["a.jpg", "x"], {".txt": 1})
        write(root, {"z.csv": b""})
        with pytest.raises(TypeError):
            taken()
    monkeypatch.setattr("pipeline.dataset.open.scan_folder", None)  # no image has changed, so nothing is decoded
    assert taken() == (["a.jpg", "x"], {".txt": 1, ".csv": 1})
    with monkeypatch.context() as context:
        context.setattr("pipeline.dataset.folder._head", None)
        assert taken() == (["a.jpg", "x"], {".txt": 1, ".csv": 1})
