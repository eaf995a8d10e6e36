"""Conversion keeps channels and depth: files that FFCV's own writer wrote are read, and its own reader reads ours."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.channels.array_field import arguments_of, image_format, type_and_shape
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import State
from pipeline.dataset.tars import Range, list_tar
from support.conversions import converted, digests, run, sources_in_order, target
from support.native.betons import stock_arrays, write_arrays
from support.native.images import gray_png, npy, tiles, write_tiles
from support.odd_images import encode, scene
from support.small_datasets import error_of, write

HWC = Choice(layout="hwc")
FOUR = PixelFormat(4, "uint16", native=True)
NAMES = [f"{('dark', 'light')[index % 2]}/{index:03d}.npy" for index in range(9)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiles(tmp_path_factory.mktemp("native") / "tiles", tiles(9))


def in_order(report, images):
    """The images of `source` in the order in which they were packed."""
    return [images[int(name[-7:-4])] for name in sources_in_order(report, NAMES[: len(images)])]


@pytest.mark.parametrize("kind", ["beton", "wds", "index"])
def test_what_conversion_wrote_trains_in_place_with_every_value(source, tmp_path, kind):
    out = target(tmp_path, kind)
    report = converted(source, out, kind, shard_images=4)
    table = open_dataset(out, tmp_path / "tables", workers=1, progress=False)
    assert table.pixels.kind == FOUR.kind and table.classes == ("dark", "light")
    assert (table.state == State.ARRAY).all() and not report.quarantined
    images = tiles(9)
    expected = [*images[::2], *images[1::2]] if kind == "index" else in_order(report, images)
    labels = [0] * 5 + [1] * 4 if kind == "index" else [int(name[0] == "l") for name in sources_in_order(report, NAMES)]
    assert table.label.tolist() == labels
    reader = Reader(table)
    for row, image in enumerate(expected):
        np.testing.assert_array_equal(reader.native(row), image)


@pytest.mark.slow(seconds=3)
def test_the_stock_package_reads_the_arrays_of_our_beton(source, tmp_path):
    out = target(tmp_path, "beton")
    report = converted(source, out, "beton", shard_images=4)
    rows = list(stock_arrays(out))
    assert [label for _, label in rows] == [int(name[0] == "l") for name in sources_in_order(report, NAMES)]
    for (array, _), image in zip(rows, in_order(report, tiles(9)), strict=True):
        assert array.dtype == np.uint16
        np.testing.assert_array_equal(array, image)


@pytest.mark.parametrize(
    ("dtype", "shape", "kept"),
    [
        ("u1", (8, 9, 5), "uint8"),
        ("<u2", (8, 9), "uint16"),
        ("<f4", (3, 8, 9), "float32"),
        ("<i2", (8, 9, 2), "float32"),
        ("<f8", (8, 9, 1), "float32"),
    ],
)
def test_the_arrays_of_the_stock_writer_are_images(tmp_path, dtype, shape, kept):
    values = np.random.default_rng(0).integers(0, 100, (5, *shape)).astype(dtype)
    path = write_arrays(tmp_path / "x.beton", values, [0, 1, 0, 1, 1])
    table = open_dataset(path, tmp_path / "tables", workers=1, progress=False)
    planes = values[..., None] if len(shape) == 2 else values.transpose(0, 2, 3, 1) if shape[0] == 3 else values
    assert table.pixels.dtype == kept and table.pixels.channels == planes.shape[3]
    assert table.label.tolist() == [0, 1, 0, 1, 1]
    reader = Reader(table)
    for row, image in enumerate(planes):
        array = reader.native(row)
        assert array.dtype == kept
        np.testing.assert_array_equal(array, image)
    again = target(tmp_path / "again", "wds")
    converted(path, again, "wds", seed=None)
    shards = open_dataset(again, tmp_path / "tables", workers=1, progress=False)
    np.testing.assert_array_equal(Reader(shards).native(3), planes[3])


def test_an_array_with_values_that_are_no_numbers_is_quarantined(tmp_path):
    values = np.ones((3, 4, 5, 2), np.float32)
    values[1, 0, 0, 0] = np.nan
    path = write_arrays(tmp_path / "x.beton", values, [0, 0, 0])
    table = open_dataset(path, tmp_path / "tables", workers=1, progress=False)
    assert table.quarantine == {1: "infinite or NaN values"}


def test_an_array_beside_pictures_is_no_image_unless_it_is_named(tmp_path):
    values = np.arange(2 * 4 * 5 * 3, dtype=np.uint16).reshape(2, 4, 5, 3)
    path = write_arrays(tmp_path / "x.beton", values, [0, 1], picture=np.zeros((6, 7, 3), np.uint8))
    assert open_dataset(path, tmp_path / "tables", 1, False).pixels == COLOR
    chosen = open_dataset(path, tmp_path / "tables", 1, False, choice=Choice("image"))
    assert chosen.pixels.kind == (True, 3, "uint16")
    np.testing.assert_array_equal(Reader(chosen).native(1), values[1])


def test_damaged_arguments_of_an_array_field_are_no_image():
    arguments = arguments_of(np.dtype("<u2"), (4, 5, 6))
    assert type_and_shape(arguments) == (np.dtype("<u2"), (4, 5, 6))
    for place in range(256, 280):
        damaged = bytearray(arguments)
        damaged[place] ^= 0x55
        found = type_and_shape(bytes(damaged))
        assert found is None or isinstance(found[0], np.dtype)
    endless = bytearray(arguments)
    endless[:8] = b"\xff" * 8
    assert image_format(*type_and_shape(bytes(endless)), "auto") is None
    deep = arguments[:256] + (700).to_bytes(8, "little") + b"[" * 700
    assert type_and_shape(deep.ljust(1024, b"\0")) is None


def test_shards_hold_npy_files_that_numpy_reads(source, tmp_path):
    out = target(tmp_path, "wds")
    report = converted(source, out, "wds", shard_images=100)
    (shard,) = out.glob("*.tar")
    _, members, index = list_tar(Range(str(shard))), [], shard.with_suffix(".idx").read_text().splitlines()[1:]
    for line in index:
        suffix, offset, length = line.split()[:3]
        assert suffix == "npy"
        members.append(np.load(io.BytesIO(shard.read_bytes()[int(offset) : int(offset) + int(length)])))
    for array, image in zip(members, in_order(report, tiles(9)), strict=True):
        np.testing.assert_array_equal(array, image)


def test_the_same_source_gives_the_same_bytes_with_any_number_of_workers(source, tmp_path):
    for kind in ("beton", "wds"):
        for workers in (1, 2):
            converted(source, target(tmp_path / f"{kind}{workers}", kind), kind, shard_images=2, workers=workers)
        assert digests(tmp_path / f"{kind}1") == digests(tmp_path / f"{kind}2")


def test_images_of_another_kind_or_size_are_left_out_by_name(tmp_path):
    folder = write_tiles(tmp_path / "tiles", tiles(7))
    write(folder / "dark", {"two.npy": npy(tiles(1)[0][..., :2]), "bad.npy": b"no"})
    report = converted(folder, target(tmp_path, "beton"), "beton")
    assert report.quarantined == {
        "dark/two.npy": "of another kind: 2 channels of uint16",
        "dark/bad.npy": "not an image",
    }
    write(folder / "light", {"small.npy": npy(tiles(1)[0][:20])})
    line = error_of(converted, folder, tmp_path / "y.beton", "beton")
    assert "--format=beton: the arrays of a .beton have one size, and there are images of 24 x 24, 24 x 20" in line
    assert converted(folder, target(tmp_path, "wds"), "wds").written == 8


def test_a_16_bit_source_keeps_its_depth_and_rgb_makes_pictures_of_it(tmp_path):
    deep = [tile[..., 0] for tile in tiles(4)]
    folder = write_tiles(tmp_path / "gray", deep, gray_png, "png")
    converted(folder, target(tmp_path / "a", "wds"), "wds", seed=None)
    table = open_dataset(tmp_path / "a" / "x", tmp_path / "tables", 1, False)
    assert table.pixels.kind == (True, 1, "uint16")
    np.testing.assert_array_equal(Reader(table).native(1)[..., 0], deep[2])
    converted(folder, target(tmp_path / "b", "wds"), "wds", choice=Choice(channels="rgb"))
    assert open_dataset(tmp_path / "b" / "x", tmp_path / "tables", 1, False).pixels == COLOR


def test_pictures_keep_their_channels_if_a_number_asks_for_it(tmp_path):
    folder = write(
        tmp_path / "photos", dict.fromkeys(("a.jpg", "b.jpg"), encode(Image.fromarray(scene(20, 30)), "JPEG"))
    )
    assert converted(folder, target(tmp_path / "a", "beton"), "beton").kinds == {}
    converted(folder, target(tmp_path / "b", "beton"), "beton", choice=Choice(channels=3))
    table = open_dataset(tmp_path / "b" / "x.beton", tmp_path / "tables", 1, False)
    assert table.pixels.kind == (True, 3, "uint8")
    line = error_of(converted, folder, tmp_path / "c.beton", "beton", choice=Choice(channels=5))
    assert "--channels=5: no image of a sample has 5 channels" in line


def test_a_smaller_side_is_resampled_in_float32(tmp_path):
    flat = [np.full((40, 20, 2), 60_000 + index, np.uint16) for index in range(2)]
    folder = write_tiles(tmp_path / "flat", flat)
    report = converted(folder, target(tmp_path, "beton"), "beton", short=10, seed=None)
    table = open_dataset(tmp_path / "x.beton", tmp_path / "tables", 1, False)
    assert report.kinds == {"resized": 2, "stored as an array": 2}
    for row in range(2):
        np.testing.assert_array_equal(Reader(table).native(row), np.full((20, 10, 2), 60_000 + row))


def test_formats_of_pictures_refuse_arrays(source, tmp_path):
    for kind in ("tfrecord", "recordio"):
        assert f"--format={kind}: it holds pictures" in error_of(converted, source, tmp_path / kind, kind)
    assert "--quality=80" in error_of(converted, source, tmp_path / "x", "wds", quality=80)


def test_a_beton_with_more_channels_than_rows_knows_its_axes(tmp_path):
    wide = [tile[:6, :7] for tile in tiles(3, channels=9)]
    converted(write_tiles(tmp_path / "wide", wide), target(tmp_path, "beton"), "beton", seed=None, choice=HWC)
    table = open_dataset(tmp_path / "x.beton", tmp_path / "tables", 1, False)
    assert table.pixels.channels == 9 and table.classes == ("dark", "light")
    np.testing.assert_array_equal(Reader(table).native(1), wide[2])


def test_conversion_reads_what_it_wrote(source, tmp_path):
    converted(source, target(tmp_path / "a", "wds"), "wds", seed=None)
    converted(tmp_path / "a" / "x", target(tmp_path / "b", "beton"), "beton", seed=None)
    converted(tmp_path / "b" / "x.beton", target(tmp_path / "c", "wds"), "wds", seed=None)
    first, last = (open_dataset(tmp_path / place / "x", tmp_path / "tables", 1, False) for place in "ac")
    assert first.pixels == last.pixels and first.classes == last.classes
    for row in range(9):
        np.testing.assert_array_equal(Reader(first).native(row), Reader(last).native(row))


def test_a_killed_conversion_of_arrays_goes_on(source, tmp_path):
    out = target(tmp_path / "a", "beton")
    converted(source, target(tmp_path / "whole", "beton"), "beton", shard_images=2)
    folder = out.with_name(f".{out.name}.partial")

    def stops(*arguments, **settings):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.convert.make_report", stops)
        with pytest.raises(KeyboardInterrupt):
            converted(source, out, "beton", shard_images=2)
    made = {path: path.stat().st_mtime_ns for path in folder.glob("data/*")}
    assert len(made) == 5 and json.loads((folder / "run.json").read_text())["size"] == [24, 24]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.conversion.packing._write_part", stops)  # no part is made again
        converted(source, out, "beton", shard_images=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "whole")


def test_the_command_names_a_bad_number_of_channels(tmp_path):
    code, _, errors = run(tmp_path, tmp_path / "x", "--format", "wds", "--channels", "many")
    assert code == 2 and "--channels=many: expected auto, rgb or a number from 1 on" in errors
