"""`data.max_pixels`: larger images are in quarantine, whatever the source, and others are read however large."""

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from pipeline.crops import Blur, Crops, Jitter, View
from pipeline.dataset.channels.decode import decode_native
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.images import MAX_PIXELS, BadImage, opened, probe
from pipeline.dataset.open import open_dataset, open_splits
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.table import SampleTable, State
from pipeline.loader import Loader
from support.native.images import npy, tiff
from support.odd_images import bad_images, encode, scene
from support.small_datasets import packed, write

pytestmark = pytest.mark.filterwarnings("ignore:Image size")  # Pillow's
SIDES = (20, 30, 40)
PICTURES = {
    f"{side}.{kind}": encode(Image.fromarray(scene(side, 30)), kind.upper())
    for side in SIDES
    for kind in ("png", "jpeg")
}


def usable_names(table):
    return {table.name(row) for row in table.usable().tolist()}


@pytest.mark.parametrize("check", ["decode", "headers"])
def test_larger_images_are_counted_in_quarantine(tmp_path, check, capsys):
    root = write(tmp_path / "images", PICTURES)
    options = {"cache": str(tmp_path / "tables"), "workers": 1, "check": check, "test": None}
    data = OmegaConf.create({"path": str(root), "max_pixels": 30 * 30, **options})
    table, _ = open_splits(data)
    assert usable_names(table) == {"20.png", "20.jpeg", "30.png", "30.jpeg"}
    assert set(table.quarantine.values()) == {"too large"} and table.images == 4
    assert "2 of 6 images quarantined (2 too large)" in capsys.readouterr().err
    row = next(iter(table.quarantine))
    with pytest.raises(ReadError, match="quarantined: too large"):
        Reader(table).read([row])
    data.max_pixels = 40 * 30  # the limit itself is allowed
    assert open_splits(data, progress=False)[0].images == 6
    assert len(list((tmp_path / "tables").glob("*.npz"))) == 1  # of both limits: a lower one needs no scan


def test_a_packed_table_has_the_limit_too(tmp_path):
    packed(tmp_path / "packed")
    whole = open_dataset(tmp_path / "packed", tmp_path / "tables", 1, False)
    limited = open_dataset(tmp_path / "packed", tmp_path / "tables", 1, False, choice=Choice(max_pixels=30 * 23))
    assert (whole.images, limited.images) == (7, 4)
    assert whole.digest() != limited.digest()  # so that a run does not go on with other images


@pytest.mark.parametrize("check", ["decode", "headers"])
def test_arrays_have_the_limit_too(tmp_path, check):
    arrays = {f"{side}.npy": npy(np.full((side, 30, 5), 7, np.uint16)) for side in SIDES}
    root = write(tmp_path / "images", arrays)
    table = open_dataset(root, tmp_path / "tables", 1, False, choice=Choice(max_pixels=30 * 30), check=check)
    assert table.pixels.channels == 5 and usable_names(table) == {"20.npy", "30.npy"}


@pytest.mark.parametrize("encode_array", [npy, lambda array: tiff(array, photometric="minisblack")])
def test_an_array_of_too_many_pixels_is_refused_by_its_size(encode_array):
    data = encode_array(np.zeros((30, 40), np.uint16))
    assert decode_native(data, most=1200).shape == (30, 40, 1)
    with pytest.raises(BadImage, match=r"^too large$"):
        decode_native(data, most=1199)


def test_nothing_is_left_of_a_limit_below_all_images(tmp_path):
    root = write(tmp_path / "images", PICTURES)
    with pytest.raises(ValueError, match=r"none of the 6 images can be read \(6 too large\)"):
        open_dataset(root, tmp_path / "tables", 1, False, choice=Choice(max_pixels=10))


def test_a_higher_limit_goes_beyond_twice_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # is raised here
    bomb = bad_images()["bomb.png"][0]  # 10,000 million pixels by its header
    assert opened(bomb, 10_000_000_000).size == (100_000, 100_000)
    with pytest.raises(BadImage, match=r"^too large$"):
        opened(bomb, 9_999_999_999)
    assert probe(bomb).reason == "too large"  # with the usual limit as before


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize(("check", "backend"), [("decode", "ffcv"), ("headers", "torchvision")])
def test_a_higher_limit_reads_larger_images_and_trains_on_them(tmp_path, check, backend, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # is raised here
    side = 9_500
    assert side * side > MAX_PIXELS
    large = encode(Image.new("1", (side, side), 1), "PNG")  # 1-bit: Pillow decodes it
    root = write(tmp_path / "images", {"large.png": large, "small.png": PICTURES["20.png"]})
    usual = open_dataset(root, tmp_path / "tables", 1, False, check=check)
    assert usable_names(usual) == {"small.png"} and set(usual.quarantine.values()) == {"too large"}
    choice = Choice(max_pixels=side * side)
    table = open_dataset(root, tmp_path / "tables", 1, False, choice=choice, check=check)
    assert usable_names(table) == {"large.png", "small.png"}
    crops = Crops((View(16, (0.01, 0.02)),), jitter=Jitter(0.0), grayscale=0.0, blur=Blur(0.0))
    loader = Loader(table, crops, backend=backend, seed=1, global_batch=2, max_bad_fraction=0.0)
    (batch,) = loader
    crop = batch.crops[0][batch.rows.tolist().index(0)]
    white = (1 - np.array(crops.mean)) / np.array(crops.std)
    np.testing.assert_allclose(crop.numpy(), np.broadcast_to(white[:, None, None], (3, 16, 16)), atol=1e-5)
    assert not loader.bad
    loader.close()


def test_sizes_of_many_rows_do_not_overflow():
    sides = np.array([1 << 17, 3], np.int32)  # their product has 34 bits
    zeros = np.zeros(2, np.int64)
    table = SampleTable(
        "/", ["a", "b"], np.arange(2, dtype=np.int32), zeros, length=zeros, width=sides, height=sides,
        state=np.zeros(2, np.uint8), label=np.full(2, -1),
    )  # fmt: skip
    assert table.without_larger(1 << 30).state.tolist() == [State.QUARANTINED, State.OK]
    assert table.without_larger(1 << 34) is table
