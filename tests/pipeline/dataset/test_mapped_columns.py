"""Tables in files: memory-mapped when they are large, as before when they are small, and old ones too."""

import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pipeline.dataset.columns as columns_module
from common.files import NPZ_DAMAGE
from perf.tables.synthetic import write_table
from pipeline.dataset.accounting import accounting
from pipeline.dataset.columns import ALIGNMENT, Growing, blocks, new_column, read_columns, write_columns
from pipeline.dataset.folder import images_of, list_folder, scan_folder
from pipeline.dataset.labelled import labelled_data
from pipeline.dataset.table import COLUMNS, Names, SampleTable, State
from pipeline.ledger import Ledger
from pipeline.order import order
from support.small_datasets import PNG, ROOT, packed, same, write

ARRAYS = {"a": np.arange(7, dtype=np.int64), "b": np.array([1, 2, 3], np.uint8), "none": np.empty(0, np.int32)}


def arrays_at(path: Path, arrays=None):
    with open(path, "wb") as file:
        write_columns(file, ARRAYS | {"number": np.int64(5)} if arrays is None else arrays)
    return path


@pytest.mark.parametrize("mapped_from", [0, 1 << 30])
def test_arrays_survive_and_numpy_reads_them_too(tmp_path, mapped_from):
    path = arrays_at(tmp_path / "x.npz")
    found = read_columns(path, mapped_from)
    with np.load(path) as by_numpy:
        assert set(by_numpy) == set(found) == {*ARRAYS, "number"}
        for name, array in by_numpy.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    assert int(found["number"]) == 5
    assert not found["a"].flags.writeable


def test_every_array_begins_at_a_multiple_in_the_file(tmp_path):
    path = arrays_at(tmp_path / "x.npz")
    data = path.read_bytes()
    for name, array in ARRAYS.items():
        if len(array):
            assert data.index(array.tobytes()) % ALIGNMENT == 0, name
    assert read_columns(path, 0)["a"].flags.aligned


def test_what_numpy_wrote_is_read_and_aligned(tmp_path):
    np.savez(tmp_path / "old.npz", **ARRAYS)
    found = read_columns(tmp_path / "old.npz", 0)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.aligned


@pytest.mark.parametrize("mapped_from", [0, 1 << 30])
@pytest.mark.parametrize("damage", ["flipped", "cut", "compressed", "objects"])
def test_damage_is_noticed_also_in_a_mapped_file(tmp_path, damage, mapped_from):
    path = arrays_at(tmp_path / "x.npz")
    data = path.read_bytes()
    if damage == "flipped":
        at = data.index(ARRAYS["a"].tobytes()) + 9
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "compressed":
        np.savez_compressed(path, a=np.zeros(99))
    else:
        np.savez(path, a=np.array([{}], object))
    with pytest.raises(NPZ_DAMAGE):
        read_columns(path, mapped_from)


def test_a_mapped_table_is_the_table_that_was_saved(tmp_path, monkeypatch):
    table = packed(tmp_path / "p", 7, max_count=3)
    monkeypatch.setattr(columns_module.read_columns, "__defaults__", (0,))
    mapped = SampleTable.load(tmp_path / "p" / "table.npz")
    assert same(mapped, table)
    assert mapped.digest() == table.digest()
    assert not mapped.label.flags.owndata  # no copy of its own
    assert isinstance(mapped.containers.blob, memoryview)
    copy = pickle.loads(pickle.dumps(mapped))  # for other processes
    assert same(copy, table)
    mapped.save(tmp_path / "p" / "again.npz")
    assert same(SampleTable.load(tmp_path / "p" / "again.npz"), table)
    assert accounting(mapped) == accounting(table)


def test_a_table_without_the_ends_of_its_names_is_read(tmp_path):
    """As older versions wrote it, by np.savez."""
    table = packed(tmp_path / "p")
    path = tmp_path / "p" / "table.npz"
    with np.load(path) as stored:
        np.savez(path, **{name: array for name, array in stored.items() if name != "container_ends"})
    with zipfile.ZipFile(path) as archive:
        assert "container_ends.npy" not in archive.namelist()
    assert same(SampleTable.load(path), table)


def test_ends_that_belong_to_other_names_are_an_error():
    with pytest.raises(ValueError, match="ends"):
        Names(b"a\0bb\0", np.array([1, 3]))
    assert list(Names(b"a\0bb\0", np.array([1, 4]))) == ["a", "bb"]


@pytest.mark.parametrize("spooled", [8, 1 << 30])
def test_a_column_that_grows_has_its_values_whether_in_a_file_or_not(tmp_path, monkeypatch, spooled):
    monkeypatch.setattr(columns_module, "SPOOLED", spooled)
    numbers, letters, none = (Growing(code, tmp_path) for code in ("q", "B", "i"))
    for number in range(1000):
        numbers.append(number * number)
        letters.extend(b"%d" % number)
    np.testing.assert_array_equal(numbers.whole(np.int64), np.arange(1000) ** 2)
    assert letters.whole(np.uint8).tobytes() == b"".join(b"%d" % number for number in range(1000))
    assert none.whole(np.int32).tolist() == []
    column = new_column(1000, np.int32, tmp_path)
    column[5] = 7
    assert (column.sum(), len(column), column.dtype) == (7, 1000, np.int32)
    assert list(tmp_path.iterdir()) == []  # the files have no names


def test_a_scan_that_waits_in_files_gives_the_same_table(tmp_path, monkeypatch):
    root = write(tmp_path / "root", {f"{number % 3}/{number}.png": PNG for number in range(40)} | {"note.txt": b"text"})
    usual = scan_folder(root, progress=False)
    monkeypatch.setattr(columns_module, "SPOOLED", 16)
    listing = images_of(root, list_folder(root, spool=tmp_path))
    table = scan_folder(root, 1, False, listing, spool=tmp_path)
    assert same(table, usual)
    assert table.fingerprint == usual.fingerprint
    assert table.left_out == usual.left_out
    table.save(tmp_path / "saved.npz")
    assert same(SampleTable.load(tmp_path / "saved.npz"), usual)


# ---------------------------------------------------------------------------------------------- many rows


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A table of more rows than a block, 80 MB as a file."""
    path = tmp_path_factory.mktemp("large") / "table.npz"
    write_table(path, 1_100_000)
    return path


@pytest.mark.slow(seconds=5)
def test_results_of_a_large_table_do_not_depend_on_blocks(large):
    table = SampleTable.load(large)
    assert len(blocks(len(table))) == 2
    assert table.containers[1_099_999] == "n00000999/n00000999_01099999.JPEG"
    state = table.state.copy()
    state[[3, 1_099_000]] = State.QUARANTINED
    label = table.label.copy()
    label[::3] = -1
    table = replace(table, state=state, label=label, quarantine={3: "truncated", 1_099_000: "truncated"})
    usable = np.setdiff1d(np.arange(1_100_000), [3, 1_099_000])
    np.testing.assert_array_equal(table.usable(), usable)
    labelled = usable[usable % 3 != 0]
    counted = accounting(table)
    assert (counted["images"], counted["labeled"], counted["classes"]) == (len(usable), len(labelled), 1000)
    held = labelled * 2_654_435_761 % 2**32 % 10 == 0
    data = labelled_data(table, None, 1000)
    np.testing.assert_array_equal(data.test_rows, labelled[held])
    kept = labelled[~held]
    np.testing.assert_array_equal(data.train_rows, kept[:: -(-len(kept) // 1000)])
    assert data.test_rows.dtype == data.train_rows.dtype == np.int64
    np.testing.assert_array_equal(data.classes, np.arange(1000))
    for wrong in ({"quarantine": {3: "truncated"}}, {"width": np.where(np.arange(1_100_000) == 1_099_999, -1, 500)}):
        with pytest.raises(ValueError, match="bad sample table"):
            replace(table, **wrong)


def test_order_and_ledger_are_those_of_rows_in_64_bits():
    rows = np.setdiff1d(np.arange(1_100_000), [17])
    one, other = order(5, 2, rows), order(5, 2, rows.astype(np.int32))
    assert other.dtype == np.int32
    np.testing.assert_array_equal(one, other)
    ledgers = [Ledger(), Ledger(), Ledger()]
    ledgers[0].enter(one)
    ledgers[1].enter(other)
    for part in np.array_split(one, 7):
        ledgers[2].enter(part)
    assert ledgers[0] == ledgers[1] == ledgers[2]


@pytest.mark.slow(seconds=5)
def test_a_large_table_takes_little_memory_of_its_own(large):
    """Its columns have 41 MB and its names 37 MB. A fresh process, because freed memory would hide what is taken."""
    code = """
        import sys
        from pathlib import Path
        from pipeline.dataset.table import SampleTable
        def own():
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
        before = own()
        table = SampleTable.load(Path(sys.argv[1]))
        table.digest()
        print((own() - before) / 1e6)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(large)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 15


def test_a_synthetic_table_is_like_a_folder_of_classes(tmp_path):
    write_table(tmp_path / "t.npz", 10_000)
    table = SampleTable.load(tmp_path / "t.npz")
    assert table.loose and len(table.containers) == len(table) == 10_000
    assert table.containers[1234] == f"n{table.label[1234]:08d}/n{table.label[1234]:08d}_00001234.JPEG"
    assert {name: getattr(table, name).dtype for name in COLUMNS} == COLUMNS
    assert np.bincount(table.label).tolist() == [10] * 1000
