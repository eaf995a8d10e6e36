"""Sample tables of folders, shards, packed folders and the cache; and reading their rows."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.dataset.folder
from common.cli import UserError
from common.processes import in_processes
from pipeline.dataset.folder import list_folder, scan_folder
from pipeline.dataset.images import decode
from pipeline.dataset.open import find_split, open_dataset
from pipeline.dataset.ppm import to_ppm
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.shards import Record, pack
from pipeline.dataset.table import COLUMNS, Names, SampleTable, State
from support.small_datasets import ALL, BAD, ODD, PLAIN, PNG, ROOT, error_of, packed, same, write

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image size")  # Pillow's, for odd images


@pytest.fixture
def zoo(tmp_path):
    """A folder with every image of odd_images.py."""
    return write(tmp_path / "zoo", ALL)


# ---------------------------------------------------------------------------------------------- table


@st.composite
def tables(draw):
    count, rows = draw(st.integers(1, 4)), draw(st.integers(0, 20))
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9)
    classes = tuple(draw(st.lists(text, max_size=3)))

    def column(low, high):
        return np.array(draw(st.lists(st.integers(low, high), min_size=rows, max_size=rows)), np.int64)

    state = column(0, 2)
    return SampleTable(
        root=Path("/nowhere"), containers=draw(st.lists(text, min_size=count, max_size=count)),
        container=column(0, count - 1), offset=np.zeros(rows), length=column(0, 2**40),
        width=column(0, 2**31 - 1), height=column(0, 2**31 - 1), label=column(-1, len(classes) - 1),
        state=state, classes=classes, quarantine={int(row): draw(text) for row in np.flatnonzero(state == 2)},
        fingerprint=draw(st.text("0123456789abcdef")),
    )  # fmt: skip


@given(tables())
@settings(deadline=None, max_examples=25)
def test_a_table_survives_saving(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("table") / "table.npz"
    table.save(path)
    loaded = SampleTable.load(path)
    assert same(loaded, table)
    assert loaded.fingerprint == table.fingerprint
    np.testing.assert_array_equal(loaded.usable(), np.flatnonzero(table.state != State.QUARANTINED))


def test_file_names_need_not_be_utf8():
    name = os.fsdecode(b"caf\xe9.jpg")
    assert list(Names(Names.of([name, "z"]).blob)) == [name, "z"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "array", "version", "contradiction"])
def test_a_damaged_table_is_one_clear_line(tmp_path, damage):
    path = tmp_path / "t" / "table.npz"
    packed(tmp_path / "t")
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        middle = data.index(b"label.npy") + 140
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    elif damage in ("text", "empty"):
        path.write_bytes(b"hello" if damage == "text" else b"")
    elif damage == "array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        stored = dict(np.load(path))
        stored |= {"version": np.int64(99)} if damage == "version" else {"container": stored["container"] + 5}
        np.savez(path, **stored)
    line = error_of(SampleTable.load, path)
    assert line.startswith(str(path))
    assert "sample table" in line
    assert "delete it" in line


def test_a_table_that_contradicts_itself_cannot_be_made():
    columns = dict.fromkeys(COLUMNS, np.zeros(2, np.int64))
    SampleTable(root=Path(), containers=["a"], **columns)
    for wrong in ({"label": np.zeros(3)}, {"offset": [0, -1]}, {"state": [0, 2]}, {"label": [0, 1], "classes": ("x",)}):
        with pytest.raises(ValueError, match="bad sample table"):
            SampleTable(root=Path(), containers=["a"], **(columns | wrong))


# ---------------------------------------------------------------------------------------------- folder


def test_no_image_of_a_folder_is_lost_silently(zoo, tmp_path):
    table = open_dataset(zoo, tmp_path / "cache", workers=1, progress=False)
    states = {table.name(row): State(table.state[row]) for row in range(len(table))}
    expected = dict.fromkeys(PLAIN, State.OK) | dict.fromkeys(ODD, State.PIL)
    assert states == expected | {f"bad_{name}": State.QUARANTINED for name in BAD}
    assert {table.name(row): why for row, why in table.quarantine.items()} == {
        f"bad_{n}": w for n, (_, w) in BAD.items()
    }
    manifest = json.loads(next((tmp_path / "cache").glob("*.json")).read_text())
    assert {entry["name"]: entry["reason"] for entry in manifest["quarantined"]} == {
        f"bad_{name}": reason for name, (_, reason) in BAD.items()
    }
    assert (manifest["rows"], manifest["usable"]) == (len(ALL), len(PLAIN) + len(ODD))


def test_classes_are_the_first_level_folders(tmp_path):
    files = ("b/x/2.PNG", "b/1.png", "a/3.jpeg", ".hidden/4.png", "a/.5.png", "a/notes.txt", "top.png")
    (write(tmp_path, dict.fromkeys(files, PNG) | {"a/notes.txt": b"text"}) / "empty").mkdir()
    table = scan_folder(tmp_path, progress=False)
    assert list(table.containers) == ["top.png", "a/3.jpeg", "b/1.png", "b/x/2.PNG"]
    assert table.classes == ("a", "b", "empty")
    assert table.label.tolist() == [-1, 0, 1, 1]
    assert (table.width[0], table.height[0], table.length[0]) == (30, 20, len(PNG))
    assert scan_folder(tmp_path / "b" / "x", progress=False).label.tolist() == [-1]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = write(tmp_path / "root", {"a/1.png": PNG})
    write(tmp_path / "elsewhere", {"2.png": PNG})
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "again").symlink_to(root / "a")
    (root / "gone.png").symlink_to(root / "nothing.png")
    table = scan_folder(root, progress=False)
    assert list(table.containers) == ["gone.png", "a/1.png", "b/2.png", "b/again/1.png"]
    assert table.quarantine == {0: "unreadable"}


@pytest.mark.slow(seconds=3)
def test_two_scans_and_any_number_of_workers_give_the_same_table(zoo, monkeypatch):
    one = scan_folder(zoo, workers=1, progress=False)
    monkeypatch.setattr(pipeline.dataset.folder, "CHUNK", 5)  # enough chunks for processes to be started
    assert same(one, scan_folder(zoo, workers=2, progress=False))


def test_worker_processes_run_neither_the_main_script_nor_torch(tmp_path):
    script = tmp_path / "train.py"  # without the usual guard: running it again in a worker would start more workers
    script.write_text(
        textwrap.dedent("""
        import sys
        from common.processes import in_processes
        print("main runs")
        loaded = "[m for m in ('torch', 'nvidia') if m in __import__('sys').modules]"
        look = "__import__('pipeline.dataset.folder') and " + loaded
        print(list(in_processes(eval, iter([look, look]), 2)))
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["main runs", "[[], []]"], done.stderr


def test_a_killed_worker_is_one_clear_line():
    with pytest.raises(UserError, match=r"^data\.workers=2: .*killed"):
        list(in_processes(os._exit, iter([1, 1]), 2))


# ---------------------------------------------------------------------------------------------- dataset


def test_mistakes_are_one_line_with_a_remedy(tmp_path):
    def error_line(path, **options):
        return error_of(open_dataset, path, tmp_path / "cache", workers=1, progress=False, **options)

    empty = tmp_path / "empty"
    empty.mkdir()
    line = f"data.path={empty}: no images found (looked for .jpg .jpeg .png .webp"
    assert error_line(empty).startswith(line)
    assert error_line(tmp_path / "gone") == f"data.path={tmp_path / 'gone'}: no such file or folder; " + (
        "give a folder of images, *.tar, *.tfrecord, *.rec, *.mds or *.h5, one such file, a folder of LitData or LMDB, "
        "a .beton, or the output of `make convert`"
    )
    write(tmp_path, {"one.jpg": PNG, "bad/1.jpg": b"", "bad/2.png": b"text"})
    assert "neither a folder nor a .tar" in error_line(tmp_path / "one.jpg", setting="data.test")
    assert error_line(tmp_path / "one.jpg", setting="data.test").startswith("data.test=")
    assert "none of the 2 images can be read (1 zero bytes, 1 not an image)" in error_line(tmp_path / "bad")
    blocked = write(tmp_path, {"file": b""}) / "file"
    line = error_of(open_dataset, tmp_path / "bad", blocked / "cache", workers=1, progress=False)
    assert "cannot write its table to the cache" in line


def test_a_scan_is_cached_and_done_again_when_files_change(tmp_path, capsys, monkeypatch):
    root = write(tmp_path / "root", {f"a/{i}.png": PNG for i in range(3)})

    def opened():
        table = open_dataset(root, tmp_path / "cache", workers=1, progress=False)
        return table, capsys.readouterr().err

    first, messages = opened()
    assert messages == ""
    with monkeypatch.context() as context:
        context.setattr(pipeline.dataset.folder, "probe_rows", None)  # a second scan would fail
        again, messages = opened()
    assert same(again, first)
    assert messages == ""
    for change in (
        lambda: write(root, {"a/1.png": PNG + b"longer"}),
        lambda: os.utime(root / "a" / "2.png", ns=(0, 0)),
        lambda: write(root, {"b/9.png": b""}),
        lambda: (root / "a" / "0.png").unlink(),
        lambda: next((tmp_path / "cache").glob("*.npz")).write_bytes(b"damaged"),
    ):
        change()
        table, messages = opened()
        assert same(table, scan_folder(root, progress=False))
        assert messages.count("scanning again") == 1
        assert len(messages.splitlines()) == 1


def test_shards_and_packed_folders_are_recognized(tmp_path):
    cache = tmp_path / "cache"
    table = packed(tmp_path / "p", max_count=4)
    assert same(open_dataset(tmp_path / "p", cache, 1, False), table)
    assert not cache.exists()  # a packed folder needs none
    one = open_dataset(tmp_path / "p" / "some-000001.tar", cache, 1, False)
    assert len(one) == 3
    (tmp_path / "p" / "table.npz").unlink()
    assert len(open_dataset(tmp_path / "p", cache, 1, False)) == 7
    assert len(list(cache.glob("p-*.npz"))) == 1


def test_a_packed_folder_can_be_moved_but_not_robbed(tmp_path):
    packed(tmp_path / "p", max_count=4)
    moved = (tmp_path / "p").rename(tmp_path / "q")
    table = open_dataset(moved, tmp_path / "cache", 1, False)
    assert Reader(table).decode(6).shape == (26, 30, 3)
    tar = moved / "some-000001.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    assert "some-000001.tar has 1000 bytes" in error_of(open_dataset, moved, tmp_path / "cache", 1, False)
    tar.unlink()
    assert "some-000001.tar, which is missing" in error_of(open_dataset, moved, tmp_path / "cache", 1, False)


def test_ranks_that_open_together_scan_once(tmp_path):
    root = write(tmp_path / "root", {f"{i:03d}.png": PNG for i in range(300)})
    code = """
        import sys
        import pipeline.dataset.open as opening
        scan = opening.scan_folder
        opening.scan_folder = lambda *places, **settings: print("scans", file=sys.stderr) or scan(*places, **settings)
        print(len(opening.open_dataset(sys.argv[1], sys.argv[2], workers=1)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(root), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    outputs = [rank.communicate(timeout=60) for rank in ranks]
    assert [out for out, _ in outputs] == ["300\n", "300\n"], outputs
    assert sorted(err.count("scans") for _, err in outputs) == [0, 1]


def test_splits_are_found(tmp_path):
    assert find_split(tmp_path) == (tmp_path, None)
    (tmp_path / "train").mkdir()
    assert find_split(tmp_path) == (tmp_path / "train", None)
    (tmp_path / "trams").mkdir()  # then these are classes
    assert find_split(tmp_path) == (tmp_path, None)
    for name in ("validation", "test", "val"):
        (tmp_path / name).mkdir()
        assert find_split(tmp_path) == (tmp_path / "train", tmp_path / name)


# ---------------------------------------------------------------------------------------------- reader


@pytest.mark.parametrize("source", ["folder", "shards"])
@pytest.mark.parametrize("threads", [1, 3])
def test_reader_gives_the_bytes_of_plain_rows_and_a_ppm_of_odd_ones(zoo, tmp_path, source, threads):
    table = scan_folder(zoo, progress=False)
    names = [table.name(row) for row in range(len(table))]
    if source == "shards":
        records = [Record(f"{row:03d}", ALL[name], "jpg", -1) for row, name in enumerate(names)]
        table = pack(records, tmp_path / "p", "zoo", max_count=9)
    reader = Reader(table, threads=threads, open_files=2)
    rows = np.random.default_rng(0).permutation(table.usable())
    for row, data in zip(rows, reader.read(rows), strict=True):
        name = names[row]
        assert data.dtype == np.uint8
        assert bytes(data) == (PLAIN[name] if name in PLAIN else to_ppm(decode(ODD[name])))
        np.testing.assert_array_equal(reader.decode(row), decode(ALL[name]))
    for row, reason in table.quarantine.items():
        with pytest.raises(ReadError, match=f"quarantined: {reason}"):
            reader.read([row])
    reader.close()
    assert len(reader.read(rows[:3])) == 3  # it opens again


@pytest.mark.parametrize("source", ["folder", "shards"])
def test_files_that_vanish_or_change_are_errors_by_name(tmp_path, source):
    if source == "folder":
        root = write(tmp_path / "r", {f"{i}.png": PNG for i in range(4)})
        table = scan_folder(root, progress=False)
        (root / "1.png").unlink()
        write(root, {"2.png": PNG[:-1], "3.png": PNG + b"1"})
        reasons = ["No such file", "bytes where the table has", "grew"]
    else:
        table = packed(tmp_path / "r", 4, max_count=1)
        (tmp_path / "r" / "some-000001.tar").unlink()
        for name in ("some-000002.tar", "some-000003.tar"):
            write(tmp_path / "r", {name: b"short"})
        reasons = ["No such file", "changed since", "changed since"]
    items = Reader(table).try_read(range(4))
    assert isinstance(items[0], np.ndarray)
    for row, (error, reason) in enumerate(zip(items[1:], reasons, strict=True), 1):
        assert isinstance(error, ReadError)
        assert (error.row, error.name) == (row, table.name(row))
        assert reason in str(error)
        assert table.containers[row] in str(error)
    with pytest.raises(ReadError):
        Reader(table).read([0, 1])


def test_reader_keeps_few_files_open(tmp_path):
    reader = Reader(packed(tmp_path / "p", 12, max_count=1), threads=4, open_files=3)
    for _ in range(5):
        reader.read(np.arange(12))
    assert 1 <= open_below(tmp_path) <= 3
    reader.close()
    assert open_below(tmp_path) == 0


def open_below(folder: Path) -> int:
    """Files of `folder` that this process has open (other tests may have left other files open)."""
    links = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.islink(link))


def test_a_listing_is_in_one_order(tmp_path):
    names = ["b.png", "a/z.png", "a.png", "a/b/c.png", "a-b/x.png"]
    write(tmp_path, dict.fromkeys(names, b""))
    assert list(list_folder(tmp_path).names) == ["a.png", "b.png", "a/z.png", "a/b/c.png", "a-b/x.png"]


@pytest.mark.parametrize("stamp", [b"", b"99999999999.0", b"\xff\x00 half", b"nan"])
def test_what_is_in_the_lock_file_of_a_table_hides_no_change(tmp_path, stamp):
    root = write(tmp_path / "root", {"a/1.png": PNG})
    assert len(open_dataset(root, tmp_path / "cache", 1, False)) == 1
    (lock,) = (tmp_path / "cache").glob("*.lock")
    lock.write_bytes(stamp)
    write(root, {"a/2.png": PNG})
    assert len(open_dataset(root, tmp_path / "cache", 1, False)) == 2
