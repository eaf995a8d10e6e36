"""Tiles of large images: the pixels of the place in their name, in memory that the image's size does not change."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perf.tables.tiling import converted as measured
from perf.tables.tiling import write_tiff
from pipeline.conversion.tiling.grid import Tiling, is_kept, starts
from pipeline.conversion.tiling.regions import open_scene
from pipeline.dataset.channels.format import COLOR
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.images import BadImage
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from support.conversions import command, converted, digests, run, target
from support.small_datasets import ROOT, error_of

SCENE = np.random.default_rng(0).integers(0, 4096, (150, 210, 4)).astype(np.uint16)
PLANES = SCENE.transpose(2, 0, 1)
LAYOUTS = {
    "tiled": (SCENE, {"planarconfig": "contig", "tile": (32, 48), "compression": "zlib", "predictor": True}),
    "tiled, planar": (PLANES, {"planarconfig": "separate", "tile": (48, 32), "compression": "zlib"}),
    "deflated strips": (SCENE, {"planarconfig": "contig", "compression": "zlib", "rowsperstrip": 7}),
    "strips": (SCENE, {"planarconfig": "contig", "rowsperstrip": 11}),
    "one strip, big-endian": (SCENE, {"planarconfig": "contig", "rowsperstrip": 150, "byteorder": ">"}),
    "planar strips": (PLANES, {"planarconfig": "separate", "rowsperstrip": 13}),
    "pages": (PLANES, {"metadata": None, "tile": (32, 32)}),
}


def names_and_tiles(folder, tables):
    """Name and pixels of each tile of shards."""
    table = open_dataset(folder, tables, 1, False)
    reader = Reader(table)
    for row in range(len(table)):
        yield table.name(row).rpartition(":")[2].partition(".")[0], reader.native(row)


def place_of(name):
    *_, top, left = name.split("-")
    return int(top[1:]), int(left[1:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tile_has_the_pixels_of_the_place_in_its_name(tmp_path, layout):
    array, settings = LAYOUTS[layout]
    (tmp_path / "scenes" / "town").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "scenes/town/a.tif", array, photometric="minisblack", **settings)
    (tmp_path / "scenes" / "field").mkdir()
    report = converted(tmp_path / "scenes", target(tmp_path, "wds"), "wds", tiling=Tiling(64, 16))
    tops, lefts = (0, 48, 86), (0, 48, 96, 144, 146)
    assert report.written == len(tops) * len(lefts) and report.labeled == report.written
    found = dict(names_and_tiles(tmp_path / "x", tmp_path / "tables"))
    assert {place_of(name) for name in found} == {(top, left) for top in tops for left in lefts}
    for name, tile in found.items():
        top, left = place_of(name)
        assert name.startswith("town_a-y")
        np.testing.assert_array_equal(tile, SCENE[top : top + 64, left : left + 64])


def test_pages_that_are_rows_are_no_channels(tmp_path):
    tifffile.imwrite(tmp_path / "rows.tif", SCENE, photometric="minisblack")  # 150 pages of 210 x 4
    scene = open_scene(tmp_path / "rows.tif", "auto")
    np.testing.assert_array_equal(scene.read(7, 9, 64), SCENE[7:71, 9:73])
    tifffile.imwrite(tmp_path / "planes.tif", PLANES, photometric="minisblack", tile=(32, 32))
    scene = open_scene(tmp_path / "planes.tif", "auto")
    np.testing.assert_array_equal(scene.read(7, 9, 64), SCENE[7:71, 9:73])


@given(st.integers(1, 400), st.integers(8, 90), st.data())
def test_tiles_cover_a_side_and_never_leave_it(side, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    places = starts(side, Tiling(size, overlap))
    covered = {pixel for start in places for pixel in range(start, start + size)}
    assert covered == (set(range(side)) if side >= size else set())
    assert places == sorted(set(places))


def test_rules_keep_tiles_by_the_values_of_the_file():
    tile = np.zeros((8, 8, 2), np.uint16)
    tile[:4, :, 0], tile[..., 1] = 100, 1000
    kept = {"std>24": True, "std>26": False, "mean>=525,mean<=525": True, "min<0": False, "max>999, std<30": True}
    assert {rule: is_kept(tile, rule) for rule in kept} == kept


def test_only_kept_tiles_are_written_and_a_beton_has_one_size(tmp_path):
    flat = np.full((64, 200, 3), 7, np.uint8)
    flat[:, :64] = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    (tmp_path / "slides").mkdir()
    tifffile.imwrite(tmp_path / "slides/s.tif", flat, photometric="rgb", tile=(16, 16))
    report = converted(
        tmp_path / "slides",
        target(tmp_path / "out", "beton"),
        "beton",
        raw=True,
        tiling=Tiling(32, 0, "std>8"),
        seed=None,
    )
    table = open_dataset(tmp_path / "out" / "x.beton", tmp_path / "tables", 1, False)
    assert report.written == len(table) == 4 and table.pixels == COLOR
    np.testing.assert_array_equal(Reader(table).decode(3), flat[32:, 32:64])
    names = (tmp_path / "out" / "x.tiles.txt").read_text().splitlines()
    assert names == [f"s-y{top:05d}-x{left:05d}" for top in (0, 32) for left in (0, 32)]
    assert not open_dataset(tmp_path / "out", tmp_path / "tables", 1, False).left_out
    arrays = converted(tmp_path / "slides", tmp_path / "y.beton", "beton", tiling=Tiling(32), choice=Choice(channels=3))
    assert arrays.written == 14
    assert open_dataset(tmp_path / "y.beton", tmp_path / "tables", 1, False).pixels.kind == (True, 3, "uint8")


def test_one_file_a_pattern_and_other_formats_are_sources(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3)).astype(np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(image).save(tmp_path / name)
    for number, (source, count) in enumerate((("a.png", 9), ("*.png", 18))):
        out = tmp_path / str(number)
        assert converted(tmp_path / source, out, "wds", tiling=Tiling(32)).written == count


def test_images_that_give_no_tiles_are_named_and_left_out(tmp_path, capfd):
    (tmp_path / "s").mkdir()
    tifffile.imwrite(tmp_path / "s/a.tif", SCENE, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "s/small.tif", SCENE[:20], photometric="minisblack", planarconfig="contig")
    (tmp_path / "s/bad.tif").write_bytes((tmp_path / "s/a.tif").read_bytes()[:60])
    report = converted(tmp_path / "s", target(tmp_path, "wds"), "wds", tiling=Tiling(64))
    assert report.left_out == {"smaller than a tile": 1, "unreadable": 1} and report.written == 12
    assert "left out: small.tif (smaller than a tile)" in capfd.readouterr().err
    line = error_of(converted, tmp_path / "s", tmp_path / "y", "wds", tiling=Tiling(500))
    assert "no tile of 500 x 500 pixels (" in line


def test_a_damaged_block_costs_its_tiles_alone(tmp_path):
    (tmp_path / "s").mkdir()
    path = tmp_path / "s/a.tif"
    array, settings = LAYOUTS["tiled"]
    tifffile.imwrite(path, array, photometric="minisblack", **settings)
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    report = converted(tmp_path / "s", target(tmp_path, "wds"), "wds", tiling=Tiling(32))
    names = {name.rpartition(":")[2] for name in report.quarantined}
    assert names == {"a-y00000-x00000", "a-y00000-x00032"}  # the block has 32 rows and 48 columns
    assert set(report.quarantined.values()) == {"unreadable"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "4"], "--tile=4: give a number from 8"),
        (["--tile", "32", "--overlap", "32"], "--overlap=32: give a number from 0"),
        (["--tile", "32", "--keep", "std"], "--keep=std: expected one of mean, std, min, max"),
        (["--keep", "std>8"], "--keep=std>8: it is of tiles; give --tile too"),
    ],
)
def test_mistakes_end_before_any_work(tmp_path, options, message):
    code, _, errors = run(tmp_path, tmp_path / "x", "--format", "wds", *options)
    assert code == 2 and message in errors


def test_a_missing_package_is_one_line_with_its_install(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.svs").write_bytes(b"II*\0")
    with suppress(ImportError):
        import openslide

        pytest.skip(f"openslide {openslide.__version__} is installed")
    line = error_of(converted, tmp_path / "s", tmp_path / "x", "wds", tiling=Tiling(32))
    assert "pip install openslide-python openslide-bin" in line


def test_a_whole_slide_is_read_by_openslide(tmp_path):
    pytest.importorskip("openslide", reason="openslide-python is not installed")
    image = np.random.default_rng(0).integers(0, 255, (300, 200, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.svs", image, photometric="rgb", tile=(64, 64))
    scene = open_scene(tmp_path / "a.svs", "auto")
    assert (scene.height, scene.width, scene.channels) == (300, 200, 3)
    np.testing.assert_array_equal(scene.read(100, 30, 90), image[100:190, 30:120])
    (tmp_path / "b.svs").write_bytes(b"no slide")
    with pytest.raises(BadImage, match="no slide that OpenSlide reads"):
        open_scene(tmp_path / "b.svs", "auto")


def test_jpeg_2000_is_read_by_regions_or_whole(tmp_path):
    from pipeline.conversion.tiling import regions

    image = np.random.default_rng(0).integers(0, 255, (120, 100, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jp2", irreversible=False)
    scene = open_scene(tmp_path / "a.jp2", "auto")
    np.testing.assert_array_equal(scene.read(20, 30, 64), image[20:84, 30:94])
    with suppress(ImportError):
        import rasterio

        assert rasterio and regions._jpeg_2000(tmp_path / "a.jp2") is not None


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize(
    ("kind", "side", "package"), [("tif", 12_000, "tifffile"), ("jp2", 24_000, "rasterio"), ("svs", 8_000, "openslide")]
)
def test_memory_does_not_grow_with_the_image(tmp_path, kind, side, package):
    """288, 1,152 and 192 MB of pixels need less memory above that of one tile than a quarter of them. A JPEG 2000 takes
    more pixels to show it: GDAL keeps 128 MB of decoded blocks."""
    pytest.importorskip(package, reason=f"{package} is not installed")
    small, large = (measured(tmp_path, each, 256, 32, kind) for each in (256, side))
    assert large["tiles"] > 1000 and large["peak_bytes"] - small["peak_bytes"] < large["image_bytes"] / 4


@pytest.mark.slow(seconds=15)
def test_a_killed_conversion_goes_on_with_the_tiles_that_it_has(tmp_path):
    (tmp_path / "s").mkdir()
    for name in "abc":
        write_tiff(tmp_path / f"s/{name}.tif", 3000)
    options = ["--format", "wds", "--tile", "128", "--workers", "1"]
    (tmp_path / "whole").mkdir()
    assert run(tmp_path / "s", tmp_path / "whole" / "x", *options)[0] == 0
    (tmp_path / "killed").mkdir()
    out = tmp_path / "killed" / "x"
    process = subprocess.Popen(
        command(tmp_path / "s", out, *options), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    spool = out.with_name(".x.partial") / "spool"
    deadline = time.monotonic() + 100
    while len([*spool.glob("[0-9]*.tar")]) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in spool.glob("[0-9]*.tar")}
    assert 2 <= len(kept) < 6
    second = subprocess.Popen(command(tmp_path / "s", out, *options), cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(found := {path: path.stat().st_mtime_ns for path in spool.glob("[0-9]*.tar")}) <= len(kept):
        assert second.poll() is None
        time.sleep(0.002)
    assert kept.items() <= found.items()  # not made again
    assert second.wait() == 0
    assert digests(out) == digests(tmp_path / "whole" / "x")


def test_the_program_of_the_docs_measures_at_toy_size(tmp_path):
    file = tmp_path / "x.json"
    done = subprocess.run(
        [sys.executable, "-m", "perf.tables.tiling", "--side", "600", "--tile", "128", "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "| 600 x 600 |" in done.stdout and file.exists()
