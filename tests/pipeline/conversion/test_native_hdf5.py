"""HDF5 files that h5py wrote, whose images have other channels and types than a picture: converted at full depth."""

import numpy as np
import pytest

from pipeline.dataset.channels.format import COLOR
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from support.conversions import converted, target
from support.native.images import gray_png, tiles
from support.small_datasets import error_of

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
BANDS = np.stack(tiles(6, channels=5))
LABELS = [2, 0, 1, 1, 0, 2]


def table_of(path, folder, kind="wds", **settings):
    out = target(folder, kind)
    converted(path, out, kind, seed=None, **settings)
    return open_dataset(out, folder / "tables", 1, False)


def same(table, images):
    reader = Reader(table)
    return all(np.array_equal(reader.native(row), image) for row, image in enumerate(images))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", ["wds", "beton"])
def test_an_array_of_images_keeps_channels_and_depth(tmp_path, planar, kind):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = BANDS.transpose(0, 3, 1, 2) if planar else BANDS
        file.create_dataset("images", data=stored, chunks=(2, *stored.shape[1:]), compression="gzip")
        file["labels"] = LABELS
    table = table_of(tmp_path / "x.h5", tmp_path / "out", kind)
    assert table.pixels.kind == (True, 5, "uint16") and table.label.tolist() == LABELS
    assert same(table, BANDS)


@pytest.mark.parametrize(("dtype", "kept"), [("u2", "uint16"), ("f4", "float32"), ("f8", "float32"), ("i2", "float32")])
def test_an_array_of_gray_images_of_any_type(tmp_path, dtype, kept):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = BANDS[..., 0].astype(dtype)
    table = table_of(tmp_path / "x.h5", tmp_path / "out")
    assert table.pixels.kind == (True, 1, kept) and same(table, BANDS[..., :1])


def test_a_group_for_each_class_holds_arrays_or_files_at_full_depth(tmp_path):
    names = [f"{('cat', 'dog', 'owl')[label]}/{row}" for row, label in enumerate(LABELS)]
    with h5py.File(tmp_path / "arrays.h5", "w") as file, h5py.File(tmp_path / "files.h5", "w") as other:
        for row, name in enumerate(names):
            file[name] = BANDS[row]
            other[f"{name}.png"] = np.frombuffer(gray_png(BANDS[row, :, :, 0]), np.uint8)
    order = np.argsort(names)
    for stem, images in (("arrays", BANDS), ("files", BANDS[..., :1])):
        table = table_of(tmp_path / f"{stem}.h5", tmp_path / stem)
        assert table.classes == ("cat", "dog", "owl") and table.label.tolist() == [LABELS[row] for row in order]
        assert same(table, images[order])


def test_bytes_of_color_are_pictures_unless_a_number_asks_for_channels(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = BANDS[..., :3].astype(np.uint8)
    assert table_of(tmp_path / "x.h5", tmp_path / "a").pixels == COLOR
    table = table_of(tmp_path / "x.h5", tmp_path / "b", choice=Choice(channels=3))
    assert table.pixels.kind == (True, 3, "uint8") and same(table, BANDS[..., :3].astype(np.uint8))


def test_a_layout_says_where_the_channels_are(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = BANDS[:, :4, :, :].transpose(0, 3, 1, 2)  # (6, 5, 4, 24): by their lengths, channels first
    table = table_of(tmp_path / "x.h5", tmp_path / "out", choice=Choice(layout="hwc"))
    assert table.pixels.kind == (True, 24, "uint16") and table.height[0] == 5


def test_arrays_that_are_not_clear_ask_which(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["left"], file["right"] = BANDS, BANDS
    line = error_of(converted, tmp_path / "x.h5", tmp_path / "out", "wds")
    assert "several images (left, right); choose with --image=left" in line
    table = table_of(tmp_path / "x.h5", tmp_path / "out", choice=Choice("right"))
    assert same(table, BANDS) and table.left_out == {"dataset left": len(BANDS)}
