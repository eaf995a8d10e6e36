"""TIFFs of several pages, each of which is an image where `data.pages` says so."""

import numpy as np
import pytest
import tifffile

from pipeline.conversion.tiling.grid import Tiling
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader, ReadError
from support.conversions import converted, target
from support.native.images import as_tar, tiles
from support.small_datasets import error_of

PAGES = Choice(pages="images")


def stacks(root, channels=1, dtype=np.uint16, **settings):
    """A stack of three pages of 24 pixels and one of a single page, in a class each; all pages (H, W, C) in order."""
    pages = tiles(4, channels=channels, dtype=dtype, high=256 if dtype == np.uint8 else 4096)
    for name, part in (("deep/a.tif", pages[:3]), ("flat/b.tiff", pages[3:])):
        (root / name).parent.mkdir(parents=True)
        with tifffile.TiffWriter(root / name) as file:
            for page in part:
                file.write(page.squeeze(2) if channels == 1 else page, metadata=None, contiguous=False, **settings)
    return pages


@pytest.mark.parametrize("channels", [1, 5])
def test_each_page_is_an_image_in_place(tmp_path, channels):
    of_bands = {"photometric": "minisblack", "planarconfig": "contig"} if channels == 5 else {}
    pages = stacks(tmp_path / "x", channels, compression="zlib", **of_bands)
    for _ in range(2):  # the second from the cache
        table = open_dataset(tmp_path / "x", tmp_path / "tables", 1, False, choice=PAGES)
        assert table.pixels.kind == (True, channels, "uint16") and table.label.tolist() == [0, 0, 0, 1]
        for row, page in enumerate(pages):
            np.testing.assert_array_equal(Reader(table).native(row), page)
    assert [table.name(row) for row in (1, 3)] == ["deep/a.tif//frame1", "flat/b.tiff"]
    assert len(open_dataset(tmp_path / "x", tmp_path / "tables", 1, False)) == 2


def test_pages_of_8_bit_colors_are_pictures(tmp_path):
    pages = stacks(tmp_path / "x", 3, np.uint8, photometric="rgb")
    table = open_dataset(tmp_path / "x", tmp_path / "tables", 1, False, choice=PAGES)
    assert len(table) == 4 and not table.pixels.native
    np.testing.assert_array_equal(Reader(table).decode(2), pages[2])


@pytest.mark.parametrize("kind", ["beton", "wds"])
def test_conversion_makes_an_image_of_each_page(tmp_path, kind):
    pages = stacks(tmp_path / "x")
    out = target(tmp_path / "out", kind)
    assert converted(tmp_path / "x", out, kind, seed=None, choice=PAGES).written == 4
    table = open_dataset(out, tmp_path / "tables", 1, False)
    for row, page in enumerate(pages):
        np.testing.assert_array_equal(Reader(table).native(row), page)


def test_a_file_that_lost_pages_is_named(tmp_path):
    stacks(tmp_path / "x")
    table = open_dataset(tmp_path / "x", tmp_path / "tables", 1, False, choice=PAGES)
    tifffile.imwrite(tmp_path / "x/deep/a.tif", tiles(1)[0][..., 0])
    with pytest.raises(ReadError, match="fewer pages"):
        Reader(table).native(2)


def test_pages_are_images_in_folders_only(tmp_path):
    stacks(tmp_path / "x")
    archive = as_tar(tmp_path / "x", tmp_path / "x.tar")
    places = (tmp_path / "tables", 1, False)
    line = error_of(open_dataset, archive, *places, choice=PAGES)
    assert "data.pages=images: pages are images in folders only" in line
    line = error_of(open_dataset, tmp_path / "x", *places, choice=PAGES._replace(bands="a,b"))
    assert "data.pages=images: not with data.bands=a,b" in line
    line = error_of(converted, tmp_path / "x", tmp_path / "y", "wds", choice=PAGES, tiling=Tiling(16))
    assert "pages=images: no tiles of pages" in line
