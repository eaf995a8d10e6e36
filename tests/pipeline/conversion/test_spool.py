"""Sources that are spooled first: Parquet, Arrow, IDX and CIFAR give their images and run no code."""

import gzip
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from pipeline.conversion.sources import open_source
from pipeline.convert import main
from pipeline.dataset.idx import stored_png
from pipeline.dataset.images import decode, probe
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import SampleTable, State
from support.conversions import converted
from support.packed_sources import NAMES, ROW_LABELS, ROWS, Evil, cifar10, hugging_face, idx, write_arrow
from support.small_datasets import BAD, ROOT, error_of, write
from support.source_files import image, images_of, opened

# ---------------------------------------------------------------------------------------------- Parquet, Arrow


def check_hugging_face(entries, kind, count=7):
    assert (entries.kind, entries.classes) == (kind, tuple(NAMES))
    assert entries.read(range(count)) == [row["bytes"] for row in ROWS][:count]
    assert entries.label.tolist() == [-1 if label is None else label for label in ROW_LABELS][:count]


@pytest.mark.parametrize("column", ["label", "animal"])
def test_parquet_files_of_hugging_face(tmp_path, column):
    table = hugging_face(column)
    root = tmp_path / "data"
    root.mkdir()
    for part, rows in enumerate((table[:4], table[4:])):
        parquet.write_table(rows, root / f"train-0000{part}-of-00002.parquet", row_group_size=2)
    entries = opened(root, tmp_path, workers=2)
    check_hugging_face(entries, "parquet")
    assert list(entries.keys)[:3] == ["train-00000-of-00002-00000000", "1", "train-00000-of-00002-00000002"]
    check_hugging_face(opened(root / "train-*.parquet", tmp_path), "parquet")
    check_hugging_face(opened(root / "train-00000-of-00002.parquet", tmp_path), "parquet", 4)
    parquet.write_table(table, root / "test-00000-of-00001.parquet")
    line = error_of(opened, root, tmp_path)
    assert f"(test*.parquet, train*.parquet); name one, e.g. make convert SRC='{root}/train*.parquet'" in line
    check_hugging_face(opened(root / "train*.parquet", tmp_path), "parquet")
    check_hugging_face(opened(root / "test-*.parquet", tmp_path), "parquet")


def test_only_stars_and_question_marks_have_a_meaning_in_a_pattern(tmp_path):
    root = tmp_path / "a [1], 50 %"
    root.mkdir()
    parquet.write_table(hugging_face()[:4], root / "train [1] #2-0.parquet")
    check_hugging_face(opened(root / "train [1] #*.parquet", tmp_path), "parquet", 4)


def test_a_clone_from_the_hub_and_what_datasets_saves_are_searched_below(tmp_path):
    clone, saved = tmp_path / "clone", tmp_path / "saved"
    for part, rows in enumerate((hugging_face()[:4], hugging_face()[4:])):
        (clone / "data").mkdir(parents=True, exist_ok=True)
        parquet.write_table(rows, clone / "data" / f"train-0000{part}-of-00002.parquet")
    write(clone, {"README.md": b"", ".cache/x/y.parquet": b"", "images/metadata.parquet": b""})
    check_hugging_face(opened(clone, tmp_path), "parquet")
    assert opened(clone, tmp_path).left_out == {".md": 1, ".parquet": 1}
    write_arrow(saved / "train" / "data-00000-of-00001.arrow", hugging_face())
    write(saved, {"dataset_dict.json": b"", "train/cache-1f.arrow": b"", "train/state.json": b""})
    check_hugging_face(opened(saved, tmp_path), "arrow")
    write_arrow(saved / "test" / "data-00000-of-00001.arrow", hugging_face())
    line = error_of(opened, saved, tmp_path)
    assert f"(train, test); name one, e.g. make convert SRC='{saved}/train' ..." in line
    parquet.write_table(hugging_face(), clone / "data" / "validation-00000-of-00001.parquet")
    assert f"SRC='{clone}/data/train*.parquet'" in error_of(opened, clone, tmp_path)


def test_an_image_given_by_path_alone_is_read_from_its_file(tmp_path):
    names = [
        "images/1.png",
        str(tmp_path / "root" / "images" / "1.png"),
        "images/gone.png",
        "../secret.png",
        "/etc/hosts",
    ]
    write(tmp_path, {"secret.png": image(2), "root/images/1.png": image(1)})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": name} for name in [*names, None]], kind)
    parquet.write_table(pa.table({"image": rows}), tmp_path / "root" / "x.parquet")
    report = converted(tmp_path / "root" / "x.parquet", tmp_path / "out", "wds")
    assert report.written == 2
    why = "not in the file nor below its folder (path only): --images-in, or Dataset.save_to_disk, which embeds it"
    absent = dict.fromkeys(("gone", "secret", "hosts"), why)
    reasons = {name.rpartition(":")[2]: why for name, why in report.quarantined.items()}
    assert reasons == absent | {"x-00000005": "zero bytes"}


def test_paths_may_lead_into_a_folder_that_the_user_names(tmp_path):
    write(tmp_path, {"photos/a/1.png": image(1), "photos/2.png": image(2), "secret.png": image(3)})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = [str(tmp_path / "photos" / "a" / "1.png"), "2.png", str(tmp_path / "secret.png"), "../secret.png"]
    (tmp_path / "table").mkdir()
    rows = pa.array([{"bytes": None, "path": name} for name in names], kind)
    parquet.write_table(pa.table({"image": rows}), tmp_path / "table" / "x.parquet")
    words = [str(tmp_path / "table"), str(tmp_path / "out"), "--format", "wds", "--images-in", str(tmp_path / "photos")]
    assert main(words) == 0
    table = SampleTable.load(tmp_path / "out" / "table.npz")
    assert [bytes(data) for data in Reader(table).read(table.usable())] == [image(1), image(2)]
    assert main([*words[:-1], str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_of_hugging_face(tmp_path, stream):
    table = hugging_face()
    write_arrow(tmp_path / "data.arrow", table, ipc.new_stream if stream else ipc.new_file)
    check_hugging_face(opened(tmp_path / "data.arrow", tmp_path), "arrow")


def test_undecodable_images_are_spooled_unchanged(tmp_path):
    rows = [{"bytes": data} for data, _ in BAD.values()] + [{"bytes": None}, None]
    parquet.write_table(pa.table({"image": pa.array(rows)}), tmp_path / "x.parquet")
    entries = opened(tmp_path / "x.parquet", tmp_path)
    assert entries.read(range(len(rows))) == [data for data, _ in BAD.values()] + [b"", b""]
    assert (entries.classes, set(entries.label)) == ((), {-1})


def test_a_bad_columnar_file_is_one_clear_line(tmp_path):
    parquet.write_table(hugging_face(), tmp_path / "good.parquet", row_group_size=2)
    parquet.write_table(pa.table({"image": ["1.jpg"]}), tmp_path / "paths.parquet")
    parquet.write_table(pa.table({"image": ROWS[:1], "label": [2**40]}), tmp_path / "label.parquet")
    good = (tmp_path / "good.parquet").read_bytes()
    broken = good[:4] + b"\xff" * 2000 + good[2004:]
    write(tmp_path, {"cut.parquet": good[:-30], "broken.parquet": broken, "x.arrow": b"text" * 9})
    assert "no column of images" in error_of(opened, tmp_path / "paths.parquet", tmp_path)
    assert "label 1099511627776 is not a class number" in error_of(opened, tmp_path / "label.parquet", tmp_path)
    for name in ("cut.parquet", "broken.parquet", "x.arrow"):
        assert f"{name}: damaged" in error_of(opened, tmp_path / name, tmp_path)


# ---------------------------------------------------------------------------------------------- spool


SPOOLING = """
import os, sys
from pathlib import Path
from pipeline.conversion.spool import SpoolSource, Sample, spool

def samples(path):
    for number in range(3):
        if sys.argv[3:] == ["die"] and path.endswith("b") and number == 2:
            os._exit(9)
        yield Sample(str(number), Path(path).read_bytes() * (number + 1), number)

files = sorted(Path(sys.argv[1]).iterdir())
source = SpoolSource("test", [str(file) for file in files], files, samples, 0)
for tar in spool(source, Path(sys.argv[2]), progress=False):
    print(tar)
"""


def test_a_killed_spooling_goes_on_where_it_was(tmp_path):
    root, folder = write(tmp_path / "root", {"a": b"A", "b": b"B", "c": b"C"}), tmp_path / "spool"

    def run(*more):
        command = [sys.executable, "-c", SPOOLING, str(root), str(folder), *more]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert run("die").returncode == 9
    (first,) = folder.glob("[0-9]*.tar")
    assert len(list(folder.glob(".*.partial.tar"))) == 1
    stamp = first.stat()
    done = run()
    tars = [Path(line) for line in done.stdout.splitlines()]
    assert (tars[0], tars[0].stat().st_mtime_ns, tars[0].stat().st_ino) == (first, stamp.st_mtime_ns, stamp.st_ino)
    assert sorted(os.listdir(folder)) == [".lock", *sorted(path.name for path in tars)]
    for letter, path in zip("ABC", tars, strict=True):
        assert images_of(opened(path, tmp_path)) == {str(i): (letter.encode() * (i + 1), i) for i in range(3)}


def test_a_changed_source_is_spooled_again(tmp_path):
    path = tmp_path / "x.parquet"
    for count in (2, 3):
        parquet.write_table(hugging_face()[:count], path)
        check_hugging_face(opened(path, tmp_path), "parquet", count)


def test_a_spool_without_room_is_one_clear_line(tmp_path):
    parquet.write_table(hugging_face(), tmp_path / "x.parquet")
    blocked = write(tmp_path, {"file": b""}) / "file"
    assert "cannot spool to" in error_of(open_source, tmp_path / "x.parquet", blocked / "spool", progress=False)


# ---------------------------------------------------------------------------------------------- IDX


GRAY = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)


@pytest.mark.parametrize("names", ["{}-{}-idx{}-ubyte", "{}-{}-idx{}-ubyte.gz", "{}-{}.idx{}-ubyte"])
def test_an_idx_pair(tmp_path, names):
    pack_up = gzip.compress if names.endswith(".gz") else bytes
    for prefix, images in (("train", GRAY), ("t10k", GRAY[:2])):
        (tmp_path / prefix).mkdir()
        name = names.format(prefix, "images", 3)
        write(tmp_path / prefix, {name: pack_up(idx(images))})
        labels = np.arange(len(images), dtype=np.uint8)
        write(tmp_path / prefix, {names.format(prefix, "labels", 1): pack_up(idx(labels))})
        for path in (tmp_path / prefix, tmp_path / prefix / name):
            entries = opened(path, tmp_path)
            assert (entries.kind, entries.label.tolist()) == ("idx", labels.tolist())
            for data, pixels in zip(entries.read(range(len(images))), images, strict=True):
                np.testing.assert_array_equal(decode(data), np.repeat(pixels[..., None], 3, 2))
    write(tmp_path / "train", {names.format("t10k", "images", 3): b""})
    assert "holds 2 *-images-idx3-ubyte" in error_of(opened, tmp_path / "train", tmp_path)


def test_a_bad_idx_file_is_one_clear_line(tmp_path):
    name = "x-images-idx3-ubyte"
    for data, message in (
        (idx(GRAY)[:-1], "IDX file has"),
        (b"text", "not an IDX file"),
        (idx(GRAY[0]), "of shape (28, 28)"),
    ):
        assert message in error_of(opened, write(tmp_path, {name: data}) / name, tmp_path)
    write(tmp_path, {name: idx(GRAY), "x-labels-idx1-ubyte": idx(GRAY[0, 0, :4])})
    assert "labels of (4,)" in error_of(opened, tmp_path / name, tmp_path)
    write(tmp_path, {f"{name}.gz": gzip.compress(idx(GRAY))[:-9]})
    assert "damaged IDX file" in error_of(opened, tmp_path / f"{name}.gz", tmp_path)


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3), (300, 400), (300, 400, 3), (1, 1)])
def test_a_stored_png_has_the_pixels_and_needs_no_help(shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    data = stored_png(pixels)
    np.testing.assert_array_equal(decode(data), pixels if len(shape) == 3 else np.repeat(pixels[..., None], 3, 2))
    assert probe(data).state == State.OK


# ---------------------------------------------------------------------------------------------- CIFAR


def check_cifar(entries, pixels):
    assert (entries.kind, entries.classes) == ("cifar", ("plane", "car", "bird", "cat"))
    for data, expected in zip(entries.read(range(len(pixels))), pixels, strict=True):
        np.testing.assert_array_equal(decode(data), expected)
    assert entries.label.tolist() == [3, 1, 0, 2] * (len(pixels) // 4)


@pytest.mark.parametrize("python2", [True, False])
def test_cifar10_as_a_folder_a_file_and_an_archive(tmp_path, python2):
    files, pixels = cifar10(python2)
    root = write(tmp_path / "cifar-10-batches-py", files)
    training = np.concatenate([pixels["data_batch_1"], pixels["data_batch_2"]])
    check_cifar(opened(root, tmp_path), training)
    assert opened(root, tmp_path).keys[5] == "cat_s_11"
    check_cifar(opened(root / "test_batch", tmp_path), pixels["test_batch"])
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(root, root.name)
    check_cifar(opened(archive, tmp_path), training)
    check_cifar(opened(archive / "test_batch", tmp_path), pixels["test_batch"])
    assert "holds no test_batch_9" in error_of(opened, archive / "test_batch_9", tmp_path)


def test_cifar100_has_fine_labels(tmp_path):
    batch = {"fine_labels": [1, 0], "coarse_labels": [5, 6], "data": np.zeros((2, 3072), np.uint8)}
    meta = {"fine_label_names": ["apple", "bear"], "coarse_label_names": list("abcdefg")}
    files = {"train": batch, "test": batch, "meta": meta}
    root = write(tmp_path / "c", {name: pickle.dumps(value, protocol=2) for name, value in files.items()})
    images = images_of(opened(root, tmp_path))
    assert {key: label for key, (_, label) in images.items()} == {"00000": "bear", "00001": "apple"}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_does_nothing(tmp_path, protocol):
    evil = pickle.dumps({"data": Evil(str(tmp_path / "evil")), "labels": []}, protocol=protocol)
    files, _ = cifar10()
    for name in ("data_batch_2", "batches.meta"):
        root = write(tmp_path / name, files | {name: evil})
        line = error_of(opened, root, tmp_path)
        assert "asks for posix.mkdir, which could run any program" in line
    assert not (tmp_path / "evil").exists()
    pickle.loads(evil)
    assert (tmp_path / "evil").exists()  # plain pickle runs it


@pytest.mark.parametrize(
    "call", [b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy.core.multiarray\nscalar\n", b"c_codecs\nlookup\n"]
)
def test_a_pickle_gets_nothing_but_arrays_and_text(tmp_path, call):
    write(tmp_path, {"data_batch_1": call + b"."})
    assert "which could run any program" in error_of(opened, tmp_path / "data_batch_1", tmp_path)


def test_a_bad_cifar_file_is_one_clear_line(tmp_path):
    files, _ = cifar10()
    good = pickle.loads(files["data_batch_1"])
    for data, message in (
        (files["data_batch_1"][:-50], "damaged pickle"),
        (b"", "damaged pickle"),
        (pickle.dumps([1]), "holds no dictionary"),
        (pickle.dumps(good | {"data": [1]}, 2), "no 'data' of N x 3072 bytes"),
        (pickle.dumps(good | {"data": good["data"].astype("f4")}, 2), "no 'data' of N x 3072 bytes"),
        (pickle.dumps(good | {"labels": [1]}, 2), "its labels are not one number per image"),
    ):
        write(tmp_path / "c", {"data_batch_1": data})
        assert message in error_of(opened, tmp_path / "c", tmp_path)
