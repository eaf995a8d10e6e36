"""Tar shards: the same bytes each time, readable by DALI; shards of other programs are read too."""

import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap

import numpy as np
import pytest

from common import progress
from common.files import sha256
from pipeline.dataset.idx import stored_png
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.dataset.shards import Record, pack, scan_shards
from pipeline.dataset.table import COLUMNS, SampleTable, State
from support.odd_images import scene
from support.small_datasets import ODD, PNG, ROOT, error_of, packed, same, write

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image size")  # Pillow's, for odd images


GOLDEN_TAR = "8315e2b4f08fdd6149ff08428305101caaf492d545b507432d86247c0941ea06"


def test_the_same_records_give_the_same_bytes(tmp_path):
    one, two = packed(tmp_path / "one"), packed(tmp_path / "two")
    for name in ("some-000000.tar", "some-000000.idx", "table.json", "table.npz"):
        assert sha256(tmp_path / "one" / name) == sha256(tmp_path / "two" / name)
    assert same(one, SampleTable.load(tmp_path / "one" / "table.npz"))
    assert same(two, SampleTable.load(tmp_path / "two" / "table.npz"))


def test_the_bytes_of_a_shard_never_change(tmp_path):
    gray = stored_png(np.arange(12, dtype=np.uint8).reshape(3, 4))
    pack([("0", gray, "png", 3), ("f" * 99 + "/1", gray, "png", -1)], tmp_path / "p", "some")
    assert sha256(tmp_path / "p" / "some-000000.tar") == GOLDEN_TAR
    lines = ["v1.2 2", "png 512 83 0.png cls 1536 1 0.cls", f"png 2560 83 {'f' * 99}/1.png", ""]
    assert (tmp_path / "p" / "some-000000.idx").read_text() == "\n".join(lines)


def test_the_manifest_has_the_sha256_of_each_shard(tmp_path):
    packed(tmp_path / "p", max_count=3)
    manifest = json.loads((tmp_path / "p" / "table.json").read_text())
    assert [entry["name"] for entry in manifest["containers"]] == [f"some-00000{i}.tar" for i in range(3)]
    for entry in manifest["containers"]:
        path = tmp_path / "p" / entry["name"]
        assert (entry["sha256"], entry["bytes"]) == (sha256(path), path.stat().st_size)


def test_hashing_shards_shows_a_bar_on_one_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    table = packed(tmp_path / "p", max_count=3)
    capsys.readouterr()
    table.save(tmp_path / "again.npz")
    assert re.search(r"hashing the shards: 100%.* (\S+k)/\1 \[", capsys.readouterr().err)
    monkeypatch.setenv("RANK", "1")
    table.save(tmp_path / "again.npz")
    assert capsys.readouterr().err == ""


def test_shards_end_by_count_and_by_bytes(tmp_path):
    assert np.bincount(packed(tmp_path / "a", max_count=3).container).tolist() == [3, 3, 1]
    table = packed(tmp_path / "b", max_bytes=8_000)
    assert len(table.containers) > 1
    sizes = [(tmp_path / "b" / name).stat().st_size for name in table.containers]
    assert max(sizes) <= 8_000 + 10_240  # the tar's own padding


def test_our_index_is_that_of_wds2idx_byte_for_byte(tmp_path):
    wds2idx = pytest.importorskip("wds2idx", reason="DALI is not installed")
    names = [*(f"{i:03d}" for i in range(4)), "folder/one", "d" * 60 + "/" + "n" * 90, "caf\u00e9"]
    pack([Record(key, PNG, "png", i - 1) for i, key in enumerate(names)], tmp_path / "p", "some")
    tar = tmp_path / "p" / "some-000000.tar"
    environment = {"LC_ALL": "C.UTF-8"}  # wds2idx runs GNU tar, whose quoting depends on the locale
    code = f"import wds2idx; c = wds2idx.IndexCreator({str(tar)!r}, {str(tmp_path / 'theirs')!r}, verbose=False); "
    code += "c.create_index(); c.close()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | environment, check=True, timeout=60)
    assert wds2idx.IndexCreator.index_file_version == "v1.2"
    assert (tmp_path / "theirs").read_bytes() == tar.with_suffix(".idx").read_bytes()


def test_dali_reads_our_shards(tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from nvidia.dali import fn, pipeline_def

    table = packed(tmp_path / "p", max_count=4)
    shards = [str(table.root / name) for name in table.containers]

    @pipeline_def(batch_size=len(table), num_threads=1, device_id=None, prefetch_queue_depth=1)
    def reading():
        index = [shard.replace(".tar", ".idx") for shard in shards]
        return tuple(fn.readers.webdataset(paths=shards, index_paths=index, ext=["png", "cls"]))

    pipe = reading()
    pipe.build()
    images, labels = pipe.run()
    for row, data in enumerate(Reader(table).read(range(len(table)))):
        assert bytes(images.at(row)) == bytes(data)
        assert int(bytes(labels.at(row))) == table.label[row]


def test_a_scan_of_shards_finds_what_was_packed(tmp_path):
    table = packed(tmp_path / "p", max_count=3)
    scanned = scan_shards([tmp_path / "p" / name for name in table.containers], progress=False)
    assert scanned.classes == ()
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(scanned, name), getattr(table, name))


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_that_others_made_are_read(tmp_path, style):
    long = "folder/" + "n" * 150
    write(tmp_path, {"1.PNG": PNG, "1.cls": b" 7\n", "2.jpg": ODD["gray16.png"], "3.png": b"", "text.txt": b"?"})
    with tarfile.open(tmp_path / "s.tar", "w", format=style) as archive:
        archive.add(tmp_path / "1.cls", f"{long}.cls")  # the label may come first
        archive.add(tmp_path / "1.PNG", f"{long}.PNG")
        archive.addfile(tarfile.TarInfo("folder"))
        for name in ("2.jpg", "3.png", "text.txt"):
            archive.add(tmp_path / name, name)
        archive.add(tmp_path / "1.PNG", "._1.png")
    table = scan_shards([tmp_path / "s.tar"], progress=False)
    assert table.label.tolist() == [7, -1, -1]
    assert table.state.tolist() == [State.OK, State.PIL, State.QUARANTINED]
    assert table.quarantine == {2: "zero bytes"}
    assert table.name(2) == "s.tar:3.png"
    np.testing.assert_array_equal(Reader(table).decode(0), scene(20, 30))


def test_a_broken_shard_is_one_clear_line(tmp_path):
    packed(tmp_path / "p")
    tar = (tmp_path / "p" / "some-000000.tar").read_bytes()
    cut = write(tmp_path, {"cut.tar": tar[:4000], "zip.tar": b"PK\3\4" * 400, "empty.tar": b""})
    for name in ("cut.tar", "zip.tar", "empty.tar"):
        line = error_of(open_dataset, cut / name, tmp_path / "cache", workers=1, progress=False)
        assert line.startswith(f"data.path={tmp_path / name}: {name}: not an uncompressed tar, or damaged")
    broken = tar.replace(b"2" + bytes(511), b"x" + bytes(511))
    write(tmp_path, {"label.tar": broken})
    assert "some labels are names ('x'), others numbers (0)" in error_of(scan_shards, [tmp_path / "label.tar"])


def test_keys_that_webdataset_cannot_keep_are_refused(tmp_path):
    for key in ("a.b", "a b", "", "folder/", "new\nline", "x" * 101):
        assert "key" in error_of(pack, [Record(key, PNG, "png", 0)], tmp_path / "p", "some")
    assert os.listdir(tmp_path) == [".p.lock"]


def test_a_kill_while_packing_leaves_nothing_half_done(tmp_path):
    code = """
        import os, sys
        from pipeline.dataset.shards import pack
        def records():
            for i in range(9):
                if i == 5:
                    os._exit(9)
                yield f"{i}", b"x" * 5000, "png", 0
        pack(records(), sys.argv[1], "some", max_count=2)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "p")]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60).returncode == 9
    assert not (tmp_path / "p").exists()
    assert (tmp_path / ".p.partial").exists()
    packed(tmp_path / "p")
    assert sorted(os.listdir(tmp_path / "p")) == ["some-000000.idx", "some-000000.tar", "table.json", "table.npz"]
    assert not (tmp_path / ".p.partial").exists()
    assert "already exists" in error_of(packed, tmp_path / "p")
