"""Tables of which only headers were read: images are checked when they are first used, and the epochs stay exact."""

import numpy as np
import pytest
import torch

from pipeline.crops import Blur, Crops, Jitter, View
from pipeline.dataset.open import DatasetError, open_dataset
from pipeline.dataset.table import HEADERS, NONE, State
from pipeline.loader import BACKENDS, Loader
from support.odd_images import encode, odd_images, plain_images, scene
from support.photos import flat_colors, write_folder
from support.small_datasets import write

CROPS = Crops(
    views=(View(16, (0.3, 1.0)),) * 2, jitter=Jitter(saturation=0, hue=0), grayscale=0.0, blur=Blur(probability=0.0)
)
GOOD = 18


def jpeg(number):
    from PIL import Image

    return encode(Image.fromarray(scene(40 + number, 60)), "JPEG", quality=90)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """18 images that decode and 6 that do not, in ways that only decoding shows."""
    zeros, flipped = bytearray(jpeg(50)), bytearray(encode_png())
    zeros[-300:] = bytes(300)
    at = flipped.index(b"IDAT") + 20
    flipped[at] ^= 255
    files = {f"{number:02d}.jpg": jpeg(number) for number in range(GOOD - 2)}
    files |= {"good.png": plain_images()["rgb.png"], "good_cmyk.jpg": odd_images()["cmyk_adobe.jpg"]}
    files |= {f"cut_{number}.jpg": jpeg(number)[: -2 - 100 * number] for number in range(4)}
    files |= {"zeros.jpg": bytes(zeros)}
    # a PNG whose pixels are damaged under a right checksum
    files |= {"wrong.png": with_right_checksum(bytes(flipped), at)}
    return write(tmp_path_factory.mktemp("damaged"), files)


def encode_png():
    from PIL import Image

    return encode(Image.fromarray(scene(40, 60)), "PNG")


def with_right_checksum(png, at):
    import struct
    import zlib

    start = png.rindex(b"IDAT", 0, at + 1)
    (length,) = struct.unpack(">I", png[start - 4 : start])
    checksum = zlib.crc32(png[start : start + 4 + length])
    return png[: start + 4 + length] + struct.pack(">I", checksum) + png[start + 8 + length :]


def opened(root, tmp_path, check):
    return open_dataset(root, tmp_path / "tables", workers=1, progress=False, check=check)


BAD = {"cut_0.jpg", "cut_1.jpg", "cut_2.jpg", "cut_3.jpg", "zeros.jpg", "wrong.png"}


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_decoding_would_quarantine_is_replaced_at_its_first_use(damaged, tmp_path, backend):
    decoded, table = opened(damaged, tmp_path, "decode"), opened(damaged, tmp_path, HEADERS)
    reasons = {decoded.name(row): reason for row, reason in decoded.quarantine.items()}
    assert set(reasons) == BAD
    assert table.images == GOOD + 6 and not table.quarantine
    loader = Loader(table, CROPS, backend=backend, seed=3, global_batch=12, max_bad_fraction=0.0)
    for _ in range(2):
        drawn = []
        for batch in loader:
            drawn += batch.rows.tolist()
            assert all(torch.isfinite(group).all() for group in batch.crops)
        assert sorted(drawn) == list(range(24))  # every row once: the order knows nothing of damage
        loader.account(lambda values: values)
    assert loader.bad == reasons  # the reasons too are those of a scan that decodes
    loader.close()


def test_crops_after_a_resume_and_on_two_ranks_are_those_of_one_run(damaged, tmp_path):
    """The substitute is a function of the bad row, not of what was met before."""
    table = opened(damaged, tmp_path, HEADERS)
    options = {"backend": "ffcv", "seed": 3, "global_batch": 12}
    whole = Loader(table, CROPS, **options)
    batches = [batch for _ in range(2) for batch in whole]
    whole.close()
    resumed = Loader(table, CROPS, **options)
    resumed.load_state_dict({"epoch": 1, "samples": 12, "count": 12, "checksum": 0})
    rest = list(resumed)
    resumed.close()
    ranks = [Loader(table, CROPS, rank=rank, world_size=2, **options) for rank in range(2)]
    parts = [list(rank) for rank in ranks]
    for rank in ranks:
        rank.close()
    assert len(batches) == 4 and len(rest) == 1
    assert torch.equal(rest[0].crops[0], batches[3].crops[0])
    for step in range(2):
        views = [part[step].crops[0].unflatten(0, (2, 6)) for part in parts]
        assert torch.equal(torch.cat(views, dim=1), batches[step].crops[0].unflatten(0, (2, 12)))


def test_without_a_check_undecodable_images_count_as_bad(damaged, tmp_path):
    loader = Loader(opened(damaged, tmp_path, NONE), CROPS, backend="torchvision", seed=3, global_batch=12)
    with pytest.raises(DatasetError, match=r"1 of 24 images could not be read, the last was .*max_bad_fraction"):
        list(loader)
    loader.close()


def test_an_image_that_goes_missing_counts_as_bad_also_if_headers_were_read(damaged, tmp_path):
    root = write_folder(tmp_path / "images", flat_colors(24, side=20))
    table = opened(root, tmp_path, HEADERS)
    (table.root / table.containers[3]).unlink()
    loader = Loader(table, CROPS, backend="torchvision", seed=3, global_batch=12, max_bad_fraction=0.0)
    with pytest.raises(DatasetError, match=r"1 of 24 images could not be read"):
        list(loader)
    loader.close()


def test_a_folder_of_which_most_images_are_damaged_ends_the_run(tmp_path):
    files = {f"cut_{number:03d}.jpg": jpeg(number)[:-100] for number in range(150)}
    table = opened(write(tmp_path / "images", files), tmp_path, HEADERS)
    assert (table.state == State.OK).all()
    loader = Loader(table, CROPS, backend="torchvision", seed=3, global_batch=10)
    with pytest.raises(DatasetError, match=r"\d+ of 10 images could not be decoded, the last was .*data.check=decode"):
        list(loader)
    loader.close()


def test_a_scan_that_decodes_leaves_the_loader_as_it_was(damaged, tmp_path):
    table = opened(damaged, tmp_path, "decode")
    loader = Loader(table, CROPS, backend="torchvision", seed=3, global_batch=6, max_bad_fraction=0.0)
    drawn = np.concatenate([batch.rows for batch in loader])
    assert sorted(drawn.tolist()) == table.usable().tolist()
    assert loader.bad == {}
    loader.close()
