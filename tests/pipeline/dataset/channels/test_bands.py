"""Images that are several files, one for each band."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline.dataset.channels.bands import is_packed, packed, samples_of, unpacked
from pipeline.dataset.channels.decode import decode_native
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.images import BadImage
from pipeline.dataset.open import open_dataset, open_splits
from pipeline.dataset.reader import Reader, ReadError
from pipeline.stats import statistics_of
from support.conversions import converted, target
from support.native.images import as_tar, npy, tiff, tiles
from support.remote.sites import section
from support.small_datasets import error_of, write

BANDS = Choice(bands="B02,B03,B8A")
SENTINEL = "{row:02d}_T33_{band}_10m.tif"


def scenes(root, name=SENTINEL, count=6, encode=tiff):
    """Scenes of three bands, a file each, in the folders of two classes; and the scenes (H, W, 3) in their order."""
    images = tiles(count, channels=3)
    for row, image in enumerate(images):
        for band, plane in zip(BANDS.words, np.moveaxis(image, 2, 0), strict=True):
            file = root / ("field", "town")[row % 2] / name.format(row=row, band=band)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(plane))
    return [*images[::2], *images[1::2]]


@pytest.mark.parametrize(
    ("names", "bands", "wanted", "keys"),
    [
        (["b_B03.tif", "b_B02.tif", "b_B8A.tif"], "B02,B03,B8A", [[1, 0, 2]], ["b_*.tif"]),
        (["a_red.tif", "a_nir.tif", "x.tif", "b_red.tif"], "red,nir", [[0, 1]], ["a_*.tif"]),
        (["red_1.tif", "nir_1.tif"], "red,nir", [[0, 1]], ["*_1.tif"]),
        (["train_red/red_1.TIF", "train_nir/nir_1.TIF"], "red,nir", [[0, 1]], ["train_*/*_1.TIF"]),
        (["red/1.tif", "nir/1.tif", "nir/2.tif", "red/2.tif"], "red,nir", [[0, 1], [3, 2]], ["*/1.tif", "*/2.tif"]),
        (["red/1_red.tif", "red/1_nir.tif"], "red,nir", [[0, 1]], ["red/1_*.tif"]),
        (["red_fox_red.tif", "red_fox_nir.tif"], "red,nir", [[0, 1]], ["red_fox_*.tif"]),
        (["a_B2.tif", "a_B20.tif", "a_b3.tif"], "B2,B3", [[0, 2]], ["a_*.tif"]),
        (["k.red.tif", "k.nir.tif"], "red,nir", [[0, 1]], ["k.*.tif"]),
        (["a_red.tif"], "red,nir", [], []),
    ],
)
def test_files_belong_together_by_the_word_in_their_names(names, bands, wanted, keys):
    places, found = samples_of(names, bands.split(","))
    assert (places.tolist(), found) == (wanted, keys)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
@example([packed([b"a file"])])
def test_the_bytes_of_files_in_one_piece_come_apart_again(files):
    whole = packed(files)
    if any(map(is_packed, files)):  # a band has no bands, or one image could hold them without end
        with pytest.raises(BadImage):
            unpacked(whole)
        return
    assert unpacked(whole) == files
    for cut in {0, 8, 16, len(whole) - 1}:
        if cut < len(whole):
            with pytest.raises(BadImage):
                unpacked(whole[:cut] or whole[:-1] + b"xx")


def test_damaged_pieces_end_with_a_reason():
    noise, whole = np.random.default_rng(0), packed([npy(np.ones((4, 4), np.uint8)), npy(np.ones((4, 4), np.uint8))])
    for _ in range(200):
        data = bytearray(whole)
        for place in noise.integers(8, 60, 3):
            data[place] = noise.integers(256)
        try:
            decode_native(bytes(data))
        except BadImage as error:
            assert error.reason
    with pytest.raises(BadImage, match="unreadable"):
        decode_native(packed([packed([whole])]))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_bands_train_in_place(tmp_path, kind):
    images = scenes(tmp_path / "scenes")
    source = tmp_path / "scenes" if kind == "folder" else as_tar(tmp_path / "scenes", tmp_path / "scenes.tar")
    table = open_dataset(source, tmp_path / "tables", 1, False, choice=BANDS)
    assert table.pixels.kind == (True, 3, "uint16") and len(table) == 6 and not table.left_out
    assert table.classes == ("field", "town") and table.label.tolist() == [0, 0, 0, 1, 1, 1]
    reader = Reader(table)
    again = open_dataset(source, tmp_path / "tables", 1, False, choice=BANDS)  # from the cache
    for row, image in enumerate(images):
        np.testing.assert_array_equal(reader.native(row), image)
        np.testing.assert_array_equal(Reader(again).native(row), image)
    statistics, _ = statistics_of(table, tmp_path / "tables", progress=False)
    np.testing.assert_allclose(statistics.mean, np.stack(images).mean((0, 1, 2)) / 65535)


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("kind", ["beton", "wds", "index"])
def test_conversion_puts_bands_together(tmp_path, kind, packs):
    images = scenes(tmp_path / "scenes")
    source = as_tar(tmp_path / "scenes", tmp_path / "scenes.tar") if packs else tmp_path / "scenes"
    out = target(tmp_path, kind)
    report = converted(source, out, kind, seed=None, choice=BANDS, shard_images=4)
    assert report.written == 6 and report.labeled == 6
    table = open_dataset(out, tmp_path / "tables", 1, False)
    assert table.classes == ("field", "town")
    for row, image in enumerate(images):
        np.testing.assert_array_equal(Reader(table).native(row), image)


def test_a_sample_without_a_band_is_left_out_and_a_changed_file_is_named(tmp_path):
    images = scenes(tmp_path / "scenes")
    (tmp_path / "scenes/field/00_T33_B03_10m.tif").unlink()
    write(tmp_path / "scenes", {"notes.txt": b"x"})
    table = open_dataset(tmp_path / "scenes", tmp_path / "tables", 1, False, choice=BANDS)
    assert len(table) == 5 and table.left_out == {".txt": 1, "file without the other bands": 2}
    np.testing.assert_array_equal(Reader(table).native(0), images[1])
    (tmp_path / "scenes/field/02_T33_B8A_10m.tif").write_bytes(b"short")
    with pytest.raises(ReadError, match="changed since the table was made"):
        Reader(table).native(0)


def test_bands_of_lower_resolution_are_repeated_and_others_refused():
    fine, coarse = np.arange(16, dtype=np.uint16).reshape(4, 4), np.array([[1, 2], [3, 4]], np.uint16)
    array = decode_native(packed([npy(fine), npy(coarse)]))
    np.testing.assert_array_equal(array[..., 0], fine)
    np.testing.assert_array_equal(array[..., 1], np.kron(coarse, np.ones((2, 2))))
    for other, reason in ((fine[:3], "sizes"), (fine.astype(np.float32), "types")):
        with pytest.raises(BadImage, match=f"bands of different {reason}"):
            decode_native(packed([npy(fine), npy(other)]))


def test_bands_of_several_paths_are_read_and_stretched_together(tmp_path):
    images = [*scenes(tmp_path / "one"), *scenes(tmp_path / "two", "{row}-{band}.tif", 4)]
    changes = {"path": [f"{tmp_path}/one", f"{tmp_path}/two"], "bands": BANDS.bands, "stretch": [0.0, 100.0]}
    data = OmegaConf.merge(section("", tmp_path / "t"), changes)
    table, _ = open_splits(data, progress=False)
    assert len(table) == 10 and table.bands.shape == (10, 2, 3)
    reader = Reader(replace(table, pixels=replace(table.pixels, range=())))
    assert all(np.array_equal(reader.native(row), image) for row, image in enumerate(images))
    values = np.concatenate([image.reshape(-1, 3) for image in images])
    assert table.pixels.range == tuple(zip(values.min(0).tolist(), values.max(0).tolist(), strict=True))


@pytest.mark.parametrize("bands", ["B02", "B02,B02", "B02,,B03", "B02,B*", ""])
def test_bands_that_are_no_words_are_one_line(tmp_path, bands):
    scenes(tmp_path / "scenes")
    line = error_of(open_dataset, tmp_path / "scenes", tmp_path / "tables", 1, False, choice=Choice(bands=bands))
    assert f"data.bands={bands}: expected two or more words" in line


def test_other_mistakes_name_the_setting(tmp_path):
    scenes(tmp_path / "scenes")
    line = error_of(open_dataset, tmp_path / "scenes", tmp_path / "t", 1, False, choice=Choice(bands="red,nir"))
    assert "data.bands=red,nir: no image has a file for each of them" in line
    line = error_of(converted, tmp_path / "scenes", tmp_path / "x", "wds", choice=BANDS._replace(channels="rgb"))
    assert "--bands=B02,B03,B8A: --channels=rgb has no bands" in line
    (tmp_path / "x.rec").write_bytes(b"")
    line = error_of(open_dataset, tmp_path / "x.rec", tmp_path / "t", 1, False, choice=BANDS)
    assert "files of one band are read in folders and tars only" in line
