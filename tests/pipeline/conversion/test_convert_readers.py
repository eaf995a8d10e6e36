"""The files of a conversion, read by the stock FFCV, by DALI and by our loader."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.conversion.beton_writer import PAGE, layout, page_size, pieces
from pipeline.convert import packing_order
from pipeline.dataset.images import decode
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import SampleTable
from support.conversions import LABELLED, converted, sources_in_order, target, write_zoo
from support.native.images import tiles, write_tiles
from support.photos import photographs, write_folder
from support.small_datasets import ODD, PLAIN, write

LOADERS = []  # of FFCV, kept to the end: numba 0.68 may fail to finalize what they compiled while Python still runs

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image size")  # Pillow's, for odd images


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("source"))


def ffcv_pixels(path):
    """Image and label of each sample, by the C decoder of the stock package."""
    from ffcv.libffcv import imdecode
    from ffcv.reader import Reader as Stock

    stock = Stock(str(path))
    sizes = dict(zip(stock.alloc_table["ptr"].tolist(), stock.alloc_table["size"].tolist(), strict=True))
    data = np.fromfile(path, np.uint8)
    for (mode, width, height, pointer), label in stock.metadata:
        blob = np.array(data[pointer : pointer + sizes[int(pointer)]])
        if mode == 1:
            yield blob.reshape(height, width, 3), label
            continue
        pixels = np.zeros((height, width, 3), np.uint8)
        assert imdecode(blob, pixels, height, width, height, width, 0, 0, 1, 1, False, False) == 0
        yield pixels, label


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("raw", [False, True])
def test_stock_ffcv_decodes_every_image_of_the_zoo(zoo, tmp_path, raw):
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    out = target(tmp_path, "beton")
    report = converted(zoo, out, "beton", raw=raw, shard_images=40)
    names = sources_in_order(report, LABELLED)
    assert len(names) == report.written == len(PLAIN) + len(ODD)
    for name, (pixels, label) in zip(names, ffcv_pixels(out), strict=True):
        expected = decode(LABELLED[name])
        assert pixels.shape == expected.shape and label == int(name[5]), name
        difference = np.abs(pixels.astype(int) - expected)
        # FFCV uses libjpeg's fast DCT; re-encoded images also differ by a JPEG of quality 95.
        assert difference.mean() < (0.001 if raw else 4), name


@pytest.mark.slow
@pytest.mark.parametrize(("raw", "cached"), [(False, True), (True, False)], ids=["jpg-os_cache", "raw-process_cache"])
def test_the_stock_loader_reads_our_beton(tmp_path, raw, cached):
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    photos = [photo[:200, :300] for photo in photographs()]
    source = write_folder(tmp_path / "photos", photos, suffix=".jpg")
    out = target(tmp_path, "beton")
    report = converted(source, out, "beton", raw=raw, shard_images=2)
    loader = Loader(
        str(out), batch_size=3, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=cached,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip
    LOADERS.append(loader)
    batches = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in loader]
    images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
    files = [f"class{index % 2}/{index:05d}.jpg" for index in range(len(photos))]
    for name, pixels, label in zip(sources_in_order(report, files), images, labels.ravel(), strict=True):
        expected = decode((source / name).read_bytes())
        assert label == int(name[5])
        assert np.abs(pixels.astype(int) - expected).mean() < (0.001 if raw else 2), name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_stock_loader_reads_the_arrays_of_our_beton(tmp_path, dtype):
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption

    images = tiles(9, 20, channels=5, dtype=dtype)
    source, out = write_tiles(tmp_path / "tiles", images), target(tmp_path, "beton")
    converted(source, out, "beton", seed=None, shard_images=4)
    pipelines = {"image": [NDArrayDecoder()], "label": [IntDecoder()]}
    loader = Loader(str(out), batch_size=3, num_workers=1, order=OrderOption.SEQUENTIAL, pipelines=pipelines)
    LOADERS.append(loader)
    batches = [(arrays.copy(), labels.copy()) for arrays, labels in loader]
    arrays, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
    assert labels.ravel().tolist() == [0] * 5 + [1] * 4 and arrays.dtype == dtype
    np.testing.assert_array_equal(arrays, [*images[::2], *images[1::2]])


def test_a_blob_never_lies_across_a_page(tmp_path):
    """One image is larger than FFCV's default page of 8 MiB, so this file has larger pages."""
    big = np.random.default_rng(0).integers(0, 255, (1800, 1700, 3), np.uint8)  # 9.2 MB raw
    rest = [big[:1000, : 900 + index] for index in range(8)]
    source = write_folder(tmp_path / "source", [*rest, big])
    out = target(tmp_path, "beton")
    converted(source, out, "beton", raw=True, shard_images=4)
    table = SampleTable.load(out.with_suffix(".npz"))
    page = 2 * PAGE
    assert int.from_bytes(out.read_bytes()[4:8], "little") == page
    assert (table.offset // page == (table.offset + table.length - 1) // page).all()
    assert table.length.max() == big.nbytes
    for row in table.usable():
        expected = decode((source / sorted_names(source)[packing_order(9, 31)[row]]).read_bytes())
        data = Reader(table).decode(row)
        assert np.array_equal(data, expected)


@given(st.lists(st.integers(1, 3 * PAGE), max_size=40))
def test_blobs_fill_pages_and_leave_gaps_only_at_their_ends(sizes):
    sizes = np.array(sizes, np.int64)
    page = page_size(int(sizes.max(initial=1)))
    starts, allocations = layout(sizes, page)
    assert (starts // page == (starts + sizes - 1) // page).all()
    gaps = starts[1:] - (starts + sizes)[:-1]
    assert ((gaps == 0) | (starts[1:] % page == 0)).all() and (gaps[gaps > 0] < sizes[1:][gaps > 0]).all()
    assert allocations % PAGE == 0 and allocations >= (starts + sizes).max(initial=0)
    covered = [byte for start, size in pieces(starts, sizes) for byte in (start, start + size)]
    assert covered == sorted(covered) and sum(covered[1::2]) - sum(covered[::2]) == sizes.sum()


def test_small_parts_take_no_more_room_and_change_no_byte(tmp_path):
    source = write_folder(tmp_path / "source", [photo[:300, :400] for photo in photographs()] * 5)
    files = []
    for images in (1, 3, 1000):
        files.append(target(tmp_path / str(images), "beton"))
        converted(source, files[-1], "beton", raw=True, shard_images=images)
    assert len({file.read_bytes() for file in files}) == 1
    assert files[0].stat().st_size < SampleTable.load(files[0].with_suffix(".npz")).length.sum() + 3 * PAGE


def sorted_names(source):
    return sorted(str(path.relative_to(source)) for path in source.rglob("*.png"))


def test_dali_reads_our_shards_by_their_index(zoo, tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from nvidia.dali import fn, pipeline_def, types

    out = target(tmp_path, "wds")
    report = converted(zoo, out, "wds", shard_images=40)
    shards = sorted(out.glob("*.tar"))
    assert len(shards) == 3

    @pipeline_def(batch_size=report.written, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def reading():
        index = [str(shard.with_suffix(".idx")) for shard in shards]
        data, label = fn.readers.webdataset(
            paths=[str(shard) for shard in shards], index_paths=index, ext=["jpg;png;webp", "cls"]
        )
        return fn.decoders.image(data, output_type=types.RGB), label

    pipe = reading()
    pipe.build()
    images, labels = pipe.run()
    for row, name in enumerate(sources_in_order(report, LABELLED)):
        expected = decode(LABELLED[name])
        assert int(bytes(labels.at(row))) == int(name[5])
        assert np.abs(images.at(row).astype(int) - expected).mean() < 1.0, name


@pytest.mark.parametrize("kind", ["beton", "wds", "tfrecord", "recordio"])
def test_jpeg_bytes_are_untouched(tmp_path, kind):
    upright = {name: data for name, data in PLAIN.items() if data[:2] == b"\xff\xd8" and untouched_in_a_beton(data)}
    assert {"rgb.jpg", "gray.jpg", "progressive.jpg", "two_pictures_in_one.jpg", "jpeg_called.png"} <= set(upright)
    out = target(tmp_path, kind)
    report = converted(write(tmp_path / "source", upright), out, kind, seed=None)
    table = SampleTable.load(out.with_suffix(".npz") if kind == "beton" else out / "table.npz")
    assert report.kinds == {}
    assert [bytes(data) for data in Reader(table).read(table.usable())] == [upright[name] for name in sorted(upright)]


def untouched_in_a_beton(data):
    return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) in (0, 1)


@pytest.mark.parametrize(("kind", "raw"), [("beton", False), ("beton", True), ("wds", False), ("index", False)])
def test_the_result_trains_with_dali(zoo, tmp_path, kind, raw):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from pipeline.crops import Crops, View
    from pipeline.loader import Loader

    out = tmp_path / "x.beton" if kind == "beton" else tmp_path / "x"
    converted(zoo, out, kind, raw=raw, shard_images=30)
    table = open_dataset(out, tmp_path / "cache", workers=1, progress=False)
    assert len(table.usable()) == len(PLAIN) + len(ODD) and table.classes == ("class0", "class1", "class2")
    crops = Crops(views=(View(32, (0.3, 1.0)), View(16, (0.05, 0.3))))
    loader = Loader(table, crops, backend="dali", seed=1, global_batch=29)
    batches = list(loader)
    loader.close()
    assert len(batches) == 3 and not loader.bad
    assert all(group.isfinite().all() for batch in batches for group in batch.crops)
