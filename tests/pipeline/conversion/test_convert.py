"""Conversion gives the same bytes after kills and errors, files that FFCV and DALI read, and loses no image."""

import io
import json
import random
import signal
import subprocess
import time

import numpy as np
import pytest

from pipeline.conversion.packing import load_part, record_path
from pipeline.conversion.rewrite import Options
from pipeline.convert import packing_order
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import SampleTable
from support.conversions import LABELLED, command, converted, digests, run, target, write_zoo
from support.photos import flat_colors, write_folder
from support.small_datasets import BAD, PLAIN, ROOT, error_of, write

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image size")  # Pillow's, for odd images

FORMATS = pytest.mark.parametrize("kind", ["beton", "wds", "index"])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("source"))


# ---------------------------------------------------------------------------------------------- the same bytes


@FORMATS
def test_bytes_do_not_depend_on_the_number_of_workers(zoo, tmp_path, kind):
    for workers in (1, 2):
        out = target(tmp_path / str(workers), kind)
        converted(zoo, out, kind, workers=workers, shard_images=20)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_another_seed_is_another_order_and_none_keeps_the_sources(zoo, tmp_path):
    keys = {}
    for seed in (31, 32, None):
        out = target(tmp_path / str(seed), "wds")
        converted(zoo, out, "wds", seed=seed)
        lines = (out / "x-000000.idx").read_text().splitlines()[1:]
        keys[seed] = [line.split()[3].rpartition(".")[0] for line in lines]
    assert sorted(keys[31]) == sorted(keys[32]) == sorted(keys[None])
    assert keys[31] != keys[32] != keys[None]
    report = json.loads((tmp_path / "None" / "x" / "report.json").read_text())
    names = sorted(LABELLED, key=lambda name: (name.split("/")[0], name))
    expected = [name.rpartition(".")[0] for name in names if name not in report["quarantined"]]
    assert [key.split("-")[0] for key in keys[None]] == expected


def test_the_order_of_a_seed_never_changes():
    assert packing_order(8, 31).tolist() == GOLDEN_ORDER
    assert sorted(packing_order(1000, 5).tolist()) == list(range(1000))


GOLDEN_ORDER = [4, 5, 0, 1, 3, 2, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["beton", "wds"])
def test_a_conversion_killed_again_and_again_gives_the_same_bytes(zoo, tmp_path, kind):
    undisturbed, out = target(tmp_path / "undisturbed", kind), target(tmp_path / "killed", kind)
    converted(zoo, undisturbed, kind, shard_images=1)
    moments = random.Random(7)
    partial, seen, kills = out.with_name(f".{out.name}.partial"), [], 0
    for _ in range(40):
        process = subprocess.Popen(
            command(zoo, out, "--format", kind, "--shard-images", 1, "--workers", 2), cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        enough = len(list(partial.glob("parts/*.npz"))) + moments.randint(8, 24)
        while process.poll() is None and len(list(partial.glob("parts/*.npz"))) < enough:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        if out.exists():
            break
        kills += 1
        seen.append(len(list(partial.glob("parts/*.npz"))))
    assert kills >= 2
    assert seen == sorted(seen)  # finished parts stay
    assert digests(tmp_path / "killed") == digests(tmp_path / "undisturbed")


@pytest.mark.slow(seconds=5)
def test_a_kill_while_the_parts_are_joined_costs_nothing(zoo, tmp_path):
    whole, out = target(tmp_path / "whole", "beton"), target(tmp_path / "killed", "beton")
    converted(zoo, whole, "beton", shard_images=3)
    partial = out.with_name(f".{out.name}.partial")
    arguments = command(zoo, out, "--format", "beton", "--shard-images", 3, "--workers", 1)
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (partial / "x.beton").exists():
            time.sleep(0.001)
        while process.poll() is None:
            if not (partial / "data" / "x-000002.blobs").exists():
                process.kill()
                break
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    made = {path.name: path.stat().st_mtime_ns for path in (partial / "parts").iterdir()}
    left = len(list((partial / "data").glob("*.blobs")))
    assert left < len(made)
    resumed = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert resumed.communicate(timeout=60)[1].startswith(f"resuming: {len(made)} of {len(made)} parts exist")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_damaged_part_is_made_again(zoo, tmp_path):
    out = target(tmp_path / "out", "wds")
    partial = out.with_name(".x.partial")
    first = converted(zoo, target(tmp_path / "whole", "wds"), "wds", shard_images=30)
    with pytest.raises(Exception, match="cannot be read"):
        converted(zoo, out, "wds", shard_images=30, max_bad_fraction=0.0)
    shard = partial / "data" / "x-000001.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    second = converted(zoo, out, "wds", shard_images=30)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert second.quarantined == first.quarantined


def test_other_options_or_another_source_start_over(tmp_path, capfd):
    source = write_folder(tmp_path / "source", flat_colors(6))
    (source / "class0" / "bad.png").write_bytes(b"?")
    out = target(tmp_path, "beton")

    def stopped(**options):
        error_of(converted, source, out, "beton", shard_images=2, max_bad_fraction=0.0, **options)
        return capfd.readouterr().err

    assert stopped() == ""
    assert stopped().startswith("resuming: 4 of 4 parts")
    assert "of another conversion (quality)" in stopped(quality=80)
    (source / "class1" / "new.png").write_bytes((source / "class1" / "00001.png").read_bytes())
    assert "of another conversion (source)" in stopped(quality=80)


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line_and_the_same_command_goes_on(zoo, tmp_path, sign):
    out = target(tmp_path / "out", "wds")
    arguments = command(zoo, out, "--format", "wds", "--shard-images", 1, "--workers", 2)
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = out.with_name(".x.partial")
    while len(list(partial.glob("parts/*.npz"))) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + sign
    assert errors.strip().splitlines()[-1] == "stopped; the same command continues from here"
    assert "Traceback" not in errors and not out.exists()
    code, _, errors = run(zoo, out, "--format", "wds", "--shard-images", 1, "--workers", 1)
    assert code == 0 and "resuming: " in errors


@pytest.mark.slow(seconds=4)
def test_workers_end_with_a_conversion_that_is_killed(zoo, tmp_path):
    psutil = pytest.importorskip("psutil")
    arguments = command(zoo, tmp_path / "x", "--format", "wds", "--shard-images", 1, "--workers", 2)
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob(".x.partial/parts/*.npz"))) < 5 and process.poll() is None:
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=120)[1] == []


@pytest.mark.slow(seconds=6)
def test_a_failing_disk_is_one_line_and_the_same_command_goes_on(zoo, tmp_path):
    whole, out = target(tmp_path / "whole", "beton"), target(tmp_path / "out", "beton")
    converted(zoo, whole, "beton", shard_images=20)
    arguments = command(zoo, out, "--format", "beton", "--shard-images", 20, "--workers", 2)
    limited = ["bash", "-c", 'ulimit -f 28; exec "$@"', "-", *arguments]  # no file above 28 KB
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("swave: File too large") and line.endswith("the same command continues")
    assert subprocess.run(arguments, cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------- no image is lost


@FORMATS
def test_every_bad_image_is_named_with_its_reason(zoo, tmp_path, kind):
    out = target(tmp_path, kind)
    report = converted(zoo, out, kind, workers=2, shard_images=30)
    expected = {name: BAD[name.split("/bad_")[1]][1] for name in LABELLED if "/bad_" in name}
    assert report.quarantined == expected
    assert report.images == len(LABELLED) == report.written + len(expected)
    stored = out / "report.json" if kind == "wds" else out.with_name("x.report.json")
    assert json.loads(stored.read_text())["quarantined"] == expected


def test_what_was_refused_is_in_the_report(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "source.tar", "w") as archive:
        for name, data in (("a.png", PLAIN["rgb.png"]), ("../b.png", PLAIN["rgb.png"])):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    report = converted(tmp_path / "source.tar", tmp_path / "out", "wds")
    assert report.written == 1
    assert sorted(report.refused.values()) == ["link", "path outside"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["refused"] == report.refused


def test_a_file_that_vanishes_is_unreadable_and_stops_nothing(tmp_path):
    from pipeline.conversion.packing import Task, make_part
    from pipeline.conversion.sources import open_source

    source = write(tmp_path / "source", {"a.png": PLAIN["rgb.png"], "b.png": PLAIN["rgb.png"], "c.png": b""})
    entries = open_source(source, tmp_path / "spool", progress=False)
    (source / "a.png").unlink()
    for name in ("parts", "data", "making"):
        (tmp_path / name).mkdir()
    make_part(Task(tmp_path, 0, "x-000000", np.arange(3), entries, Options("wds")))
    part = load_part(record_path(tmp_path, 0))
    assert part.bad == {0: "unreadable", 2: "zero bytes"}
    assert part.columns["rows"].tolist() == [1]


def test_too_many_bad_images_are_an_error_that_leaves_their_names(zoo, tmp_path):
    out = target(tmp_path, "beton")
    code, _, errors = run(zoo, out, "--format", "beton", "--max-bad-fraction", "0.1", "--workers", 1)
    assert code == 2 and not out.exists()
    line = errors.strip().splitlines()[-1]
    assert f"{len(BAD)} of {len(LABELLED)} images cannot be read (7 truncated, 4 not an image" in line
    names = json.loads((tmp_path / ".x.beton.partial" / "report.json").read_text())["quarantined"]
    assert len(names) == len(BAD)
    code, _, errors = run(zoo, out, "--format", "beton", "--workers", 1)
    assert code == 0 and "resuming: 1 of 1" in errors


def test_shards_have_no_gap_where_all_images_of_a_part_are_bad(tmp_path):
    files = {"a.png": PLAIN["rgb.png"], "b.png": b"?", "c.png": b"?", "d.png": PLAIN["gray.png"]}
    converted(write(tmp_path / "source", files), tmp_path / "x", "wds", seed=None, shard_images=1)
    assert sorted(path.name for path in (tmp_path / "x").glob("*.tar")) == ["x-000000.tar", "x-000001.tar"]
    table = SampleTable.load(tmp_path / "x" / "table.npz")
    assert [bytes(data) for data in Reader(table).read([0, 1])] == [files["a.png"], files["d.png"]]


# ---------------------------------------------------------------------------------------------- tables, training


def test_an_index_keeps_every_row_of_the_source_in_its_place(zoo, tmp_path):
    converted(zoo, tmp_path / "x", "index", shard_images=30)
    table = open_dataset(tmp_path / "x", tmp_path / "cache", workers=1, progress=False)
    scanned = open_dataset(zoo, tmp_path / "cache", workers=1, progress=False)
    for name in ("container", "offset", "width", "height", "label", "state"):
        assert np.array_equal(getattr(table, name), getattr(scanned, name)), name
    usable = table.usable()
    assert np.array_equal(table.length[usable], scanned.length[usable])
    assert (table.root, table.classes, table.quarantine) == (scanned.root, scanned.classes, scanned.quarantine)


def test_the_table_of_a_beton_is_used_without_a_scan(zoo, tmp_path):
    out = target(tmp_path, "beton")
    converted(zoo, out, "beton")
    table = open_dataset(out, tmp_path / "cache", workers=1, progress=False)
    assert table.classes == ("class0", "class1", "class2")  # the .beton itself has no class names
    assert not list((tmp_path / "cache").glob("*.npz"))


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "zip"], "--format=zip: give one of beton"),
        (["--format", "wds", "--short", "9", "--long", "9"], "give one of the two"),
        (["--format", "wds", "--raw"], "only a .beton can hold raw pixels"),
        (["--format", "wds", "--quality", "101"], "--quality=101: give a number from 1 to 100"),
        (["--format", "index", "--short", "9"], "an index copies nothing"),
        (["--format", "index", "--quality", "9"], "an index copies nothing"),
        (["--format", "beton", "--raw", "--quality", "9"], "--quality=9 with --raw: pixels have no quality"),
        (["--format", "beton"], "must be called *.beton"),
        (["--format", "wds", "--seed", "x"], "--seed=x: give a whole number"),
        (["--format", "wds", "--seed", "²"], "--seed=²: give a whole number"),
        (["--format", "wds", "--shard-size", "1TB"], "--shard-size=1TB: give a number with MiB"),
        (["--format", "wds", "--short", "x"], "invalid int value"),
        (["--format", "wds", "--max-bad-fraction", "2"], "--max-bad-fraction=2.0: give a number from 0 to 1"),
        (["--format", "wds", "--workers", "0"], "--workers=0: give a whole number from 1 on"),
        ([], "the following arguments are required: --format"),
    ],
)
def test_a_mistake_is_one_line(zoo, tmp_path, options, message):
    code, out, errors = run(zoo, tmp_path / "x", *options)
    assert code == 2 and out == ""
    assert message in errors and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_missing_or_empty_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        line = error_of(converted, tmp_path / name, tmp_path / "x.beton", "beton")
        assert str(tmp_path / name) in line
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@FORMATS
def test_existing_files_are_never_overwritten(zoo, tmp_path, kind):
    out = target(tmp_path, kind)
    if kind == "wds":
        write(out, {"mine": b"mine"})
    else:
        out.write_bytes(b"mine")
    before = digests(tmp_path)
    assert "already exists" in error_of(converted, zoo, out, kind)
    assert digests(tmp_path) == before


def test_a_disk_without_room_is_reported_before_the_start(tmp_path):
    source = write(tmp_path / "source", {"a.png": PLAIN["rgb.png"]})
    with open(source / "b.png", "wb") as file:
        file.truncate(1 << 43)  # eight terabytes, sparse
    line = error_of(converted, source, tmp_path / "x.beton", "beton")
    assert "needs about" in line and "are free" in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_two_conversions_into_one_out_do_not_mix(zoo, tmp_path):
    from pipeline.convert import unfinished

    with unfinished(tmp_path / "x"):
        assert "another conversion is writing it" in error_of(converted, zoo, tmp_path / "x", "wds")


def test_a_lock_that_cannot_be_taken_is_not_called_another_conversion(zoo, tmp_path):
    (tmp_path / ".x.partial" / "lock").mkdir(parents=True)
    code, _, errors = run(zoo, tmp_path / "x", "--format", "wds")
    assert code == 2 and errors.startswith("swave: Is a directory (")


def test_a_spooled_source_cannot_be_indexed(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": PLAIN["rgb.png"], "path": "a.png"}, {"bytes": PLAIN["rgb.jpg"], "path": "b.jpg"}]
    pq.write_table(pa.table({"image": images, "label": pa.array([0, 1], pa.int64())}), tmp_path / "x.parquet")
    line = error_of(converted, tmp_path / "x.parquet", tmp_path / "i", "index")
    assert "so there is nothing to index; take another format" in line
    assert not (tmp_path / ".i.partial").exists()
    report = converted(tmp_path / "x.parquet", tmp_path / "out", "wds")
    assert (report.kind, report.written, report.kinds) == ("parquet", 2, {})
