"""The ffcv backend, beyond the promises of all backends: memory, threads, and files that are no plain JPEGs."""

import gc
import io
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.conversion.rewrite import Options
from pipeline.convert import convert
from pipeline.crops import Blur, Crops, Jitter, View
from pipeline.dataset.open import open_dataset
from pipeline.dataset.table import DatasetError
from pipeline.loader import Loader
from support.photos import photographs

CROPS = Crops(views=(View(64, (0.3, 1.0)),) * 2 + (View(32, (0.1, 0.3)),) * 2)
PLAIN = replace(CROPS, flip=0.0, jitter=Jitter(probability=0.0), grayscale=0.0, blur=Blur(probability=0.0))


def jpeg(pixels, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def table_of(tmp_path, files):
    (tmp_path / "images").mkdir()
    for name, data in files.items():
        (tmp_path / "images" / name).write_bytes(data)
    return open_dataset(tmp_path / "images", tmp_path / "tables", workers=1, progress=False)


@pytest.fixture
def photos(tmp_path):
    return table_of(tmp_path, {f"{index:02d}.jpg": jpeg(image) for index, image in enumerate(photographs() * 6)})


def test_epochs_use_the_same_memory_again(photos):
    loader = Loader(photos, CROPS, backend="ffcv", seed=1, global_batch=6, threads=2)
    places = {batch.crops[0].data_ptr() for _ in range(3) for batch in loader}
    loader.close()
    assert len(places) <= 6  # of 18 batches


def test_a_batch_that_is_kept_is_not_written_over(photos):
    loader = Loader(photos, CROPS, backend="ffcv", seed=1, global_batch=6, threads=2)
    kept = [batch.crops[0] for batch in loader]
    again = Loader(photos, CROPS, backend="ffcv", seed=1, global_batch=6, threads=2)
    for crops, batch in zip(kept, again, strict=True):
        assert torch.equal(crops, batch.crops[0])


@pytest.mark.slow(seconds=3)
def test_a_loader_closed_early_leaves_no_threads(photos):
    before = threading.active_count()
    for _ in range(3):
        loader = Loader(photos, CROPS, backend="ffcv", seed=1, global_batch=6, threads=2)
        next(iter(loader))
        loader.close()
        loader.feed.reader.close()
        del loader
        gc.collect()
    deadline = time.monotonic() + 120  # threads whose pool is gone end when they next wake
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_an_error_while_reading_reaches_the_training_loop(photos):
    loader = Loader(photos, CROPS, backend="ffcv", seed=1, global_batch=6, max_bad_fraction=0.0)
    for file in (photos.root).iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="could not be read"):
        list(loader)
    loader.close()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_what_exif_turns_is_shown_upright(tmp_path, orientation):
    """A picture stored rotated, with the EXIF that rotates it back, and stored upright: the same crops."""
    pixels = photographs()[0][:96, :128]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = np.ascontiguousarray(np.rot90(pixels, {3: 2, 6: 1, 8: 3}[orientation]))
    results = {}
    for name, data in {
        "turned": jpeg(turned, exif=exif, subsampling=0),
        "upright": jpeg(pixels, subsampling=0),
    }.items():
        (tmp_path / name).mkdir()
        table = table_of(tmp_path / name, {f"{index}.jpg": data for index in range(4)})
        assert (table.height[0], table.width[0]) == (96, 128)
        loader = Loader(table, PLAIN, backend="ffcv", seed=1, global_batch=4)
        results[name] = [crops.clone() for crops in next(iter(loader)).crops]
        loader.close()
    for one, other in zip(results["turned"], results["upright"], strict=True):
        assert (one - other).abs().mean() * 255 * 0.226 < 1.5  # the JPEG's blocks differ


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["ffcv", "dali", "torchvision"])
def test_crops_come_in_the_dtype_that_is_asked_for(photos, backend, dtype):
    made = []
    for requested in (None, dtype):
        loader = Loader(photos, CROPS, backend=backend, seed=1, global_batch=6, threads=2, dtype=requested)
        made.append([crops.clone() for crops in next(iter(loader)).crops])
        loader.close()
    for exact, rounded in zip(*made, strict=True):
        assert (exact.dtype, rounded.dtype) == (torch.float32, dtype)
        assert rounded.is_contiguous(memory_format=torch.channels_last)
        assert (exact - rounded.float()).abs().max() <= 4 * torch.finfo(dtype).eps


def test_a_beton_that_is_cut_short_while_it_is_read_ends_the_epoch_by_name(photos, tmp_path):
    convert(photos.root, tmp_path / "x.beton", Options("beton"), progress=False)
    table = open_dataset(tmp_path / "x.beton", tmp_path / "tables", progress=False)
    loader = Loader(table, CROPS, backend="ffcv", seed=1, global_batch=6, threads=2, max_bad_fraction=0.0)
    next(iter(loader))
    os.truncate(tmp_path / "x.beton", int(table.offset.min()) + 1000)
    with pytest.raises(DatasetError, match=r"could not be read.*x\.beton"):
        for _ in range(3):
            list(loader)
    loader.close()
