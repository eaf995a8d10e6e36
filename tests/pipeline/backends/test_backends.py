"""The backends execute the same draw: compared with each other pixel by pixel, in levels of 0 to 255."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pipeline.crops import Blur, Crops, Jitter, Posterize, Solarize, View
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.draw import Draw, draw
from pipeline.loader import BACKENDS, Loader, evaluation_batches, execute
from pipeline.requests import Feed
from support.photos import flat_colors, photographs, write_folder

PLAIN = Crops(
    views=(View(96, (0.3, 1.0)),) * 2 + (View(48, (0.05, 0.3)),) * 2,
    flip=0.0,
    jitter=Jitter(probability=0.0),
    grayscale=0.0,
    blur=Blur(probability=0.0),
)
SWAV = Crops(views=(View(96, (0.14, 1.0)),) * 2 + (View(48, (0.05, 0.14)),) * 2)
BOTH = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("photos"), photographs())
    return open_dataset(root, tmp_path_factory.mktemp("tables"), workers=1, progress=False)


def crops_of(table, backend, crops, change=lambda drawn: drawn, epochs=4):
    """Crops in levels [0, 255] of every row and several epochs, per view: {view: (N, H, W, 3)}."""
    feed = Feed(table, Reader(table))
    executor = BACKENDS[backend](crops, len(table), 1, None)
    rows = table.usable()

    def draw_rows(epoch, *arguments):
        return change(draw(crops, 3, epoch, *arguments))

    requests = [feed.request(epoch, 0, rows, partial(draw_rows, epoch)) for epoch in range(epochs)]
    views: dict[int, list] = {view: [] for view in range(len(crops.views))}
    for _, groups in execute(executor, feed, iter(requests)):
        for (_, members), group in zip(crops.groups, groups, strict=True):
            pixels = (group.permute(0, 2, 3, 1) * torch.tensor(crops.std) + torch.tensor(crops.mean)) * 255
            for view, part in zip(members, pixels.chunk(len(members)), strict=True):
                views[view].append(part.numpy())
    executor.close()
    return {view: np.concatenate(parts) for view, parts in views.items()}


def mean_error(photos, backend, crops, change=lambda drawn: drawn):
    one, other = (crops_of(photos, name, crops, change) for name in (backend, "torchvision"))
    return float(np.mean([np.abs(one[view] - other[view]).mean() for view in one]))


def only(step):
    """A draw in which every crop takes one step of the jitter, with the others neutral."""

    def change(drawn: Draw) -> Draw:
        factors = np.broadcast_to(np.array([1, 1, 1, 0], np.float32), drawn.factors.shape).copy()
        factors[..., step] = drawn.factors[..., step]
        return replace(drawn, factors=factors)

    return change


JITTER = Jitter(probability=1.0)

# Mean absolute difference of DALI from torchvision over six photographs, four epochs and four crops each (96 crops): as
# measured; the limit is 15 % more. The limits of ffcv are in test_kernel_parity.py.
# Resizing differs only at the edge of a window, where DALI's filter reads pixels beyond it, unlike torchvision's.
# Hue is rotated about the gray axis, by torchvision in HSV; torchvision clips and rounds after every step, DALI once.
ERRORS = {
    "resize": (PLAIN, lambda d: d, 0.150),
    "flip": (replace(PLAIN, flip=1.0), lambda d: d, 0.150),
    "brightness": (replace(PLAIN, jitter=JITTER), only(0), 0.529),
    "contrast": (replace(PLAIN, jitter=JITTER), only(1), 0.529),
    "saturation": (replace(PLAIN, jitter=JITTER), only(2), 0.565),
    "hue": (replace(PLAIN, jitter=JITTER), only(3), 6.47),
    "jitter without hue": (replace(PLAIN, jitter=replace(JITTER, hue=0.0)), lambda d: d, 2.77),
    "jitter": (replace(PLAIN, jitter=JITTER), lambda d: d, 6.85),
    "gain": (replace(PLAIN, jitter=Jitter(1.0, 0.0, 0.0, 0.0, 0.0, gain=0.4)), lambda d: d, 0.548),
    "grayscale": (replace(PLAIN, grayscale=1.0), lambda d: d, 0.146),
    "blur": (replace(PLAIN, blur=Blur(probability=1.0)), lambda d: d, 0.522),
    "turn": (replace(PLAIN, vertical_flip=0.5, quarter_turn=0.75), lambda d: d, 0.150),
    "solarize": (replace(PLAIN, solarize=Solarize(1.0)), lambda d: d, 0.149),
    "posterize": (replace(PLAIN, posterize=Posterize(1.0)), lambda d: d, 0.145),
    "everything": (SWAV, lambda d: d, 5.31),
}


@pytest.mark.parametrize("operation", ERRORS)
def test_dali_gives_the_crops_of_torchvision(photos, operation):
    crops, change, measured = ERRORS[operation]
    assert mean_error(photos, "dali", crops, change) < measured * 1.15


@BOTH
def test_all_views_of_a_row_show_the_same_image(tmp_path, backend):
    """The views of a sample must come from one image (a public port mixed them). Here every image is one color."""
    colors = flat_colors(24)
    root = write_folder(tmp_path / "images", colors)
    table = open_dataset(root, tmp_path / "tables", workers=1, progress=False)
    crops = replace(SWAV, jitter=Jitter(probability=0.0), grayscale=0.0)
    loader = Loader(table, crops, backend=backend, seed=1, global_batch=6)
    reader = Reader(table)
    seen = 0
    for batch in loader:
        for (_, members), group in zip(crops.groups, batch.crops, strict=True):
            pixels = (group.permute(0, 2, 3, 1) * torch.tensor(crops.std) + torch.tensor(crops.mean)) * 255
            for part in pixels.chunk(len(members)):  # view-major: the batch's rows once per view
                for crop, row in zip(part, batch.rows, strict=True):
                    color = torch.from_numpy(reader.decode(row)[0, 0].astype(np.float32))
                    assert (crop - color).abs().max() <= 1.5
                    seen += 1
    loader.close()
    assert seen == 24 * 4


@BOTH
def test_crops_have_the_promised_layout_dtype_and_range(photos, backend):
    loader = Loader(photos, SWAV, backend=backend, seed=1, global_batch=3)
    batch = next(iter(loader))
    loader.close()
    assert [tuple(group.shape) for group in batch.crops] == [(6, 3, 96, 96), (6, 3, 48, 48)]
    low = (0 - np.array(SWAV.mean)) / SWAV.std - 1e-4
    high = (1 - np.array(SWAV.mean)) / SWAV.std + 1e-4
    for group in batch.crops:
        assert group.dtype == torch.float32
        assert group.is_contiguous(memory_format=torch.channels_last)
        assert torch.isfinite(group).all()
        for channel in range(3):
            assert group[:, channel].min() >= low[channel]
            assert group[:, channel].max() <= high[channel]
    assert batch.rows.dtype == np.int64


@BOTH
def test_crops_do_not_depend_on_threads_or_world_size(photos, backend):
    def epoch(world_size, threads):
        views: dict[tuple[int, int], torch.Tensor] = {}
        for rank in range(world_size):
            loader = Loader(
                photos, SWAV, backend=backend, seed=5, global_batch=6, rank=rank, world_size=world_size, threads=threads
            )
            for batch in loader:
                for resolution, group in enumerate(batch.crops):
                    for view, part in enumerate(group.chunk(2)):
                        for crop, row in zip(part, batch.rows.tolist(), strict=True):
                            views[row, 2 * resolution + view] = crop
            loader.close()
        return views

    reference = epoch(1, 1)
    assert len(reference) == 6 * 4
    for other in (epoch(2, 1), epoch(3, 2)):
        for key, crop in reference.items():
            assert torch.equal(crop, other[key]), key


def windows_seen(crops, group):
    """The windows that crops of `ramp` show: (crops, 4) top, left, height, width in pixels, to about one."""
    size = group.shape[-1]
    levels = (group.permute(0, 2, 3, 1) * torch.tensor(crops.std) + torch.tensor(crops.mean)) * 255
    near, far = size // 4, size - 1 - size // 4  # away from the edges, where filters differ
    columns, rows = levels[:, size // 2, :, 0], levels[:, :, size // 2, 1]
    ends = []
    for values in (rows, columns):
        scale = (values[:, far] - values[:, near]) / (far - near)
        ends.append((values[:, near] - (near + 0.5) * scale + 0.5, scale * size))
    return torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], dim=1).numpy()


@BOTH
def test_two_ranks_never_draw_the_same_windows(tmp_path, backend):
    """In the published code every rank has the same seed, so all draw the same windows in each step. Here all images
    are one picture whose colors encode the position of a pixel, so the crops show their windows."""
    x, y = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    ramp = np.stack([x, y, np.zeros_like(x)], axis=-1)
    table = open_dataset(write_folder(tmp_path / "images", [ramp] * 24), tmp_path / "tables", 1, progress=False)
    crops, seen = replace(PLAIN, views=SWAV.views), []
    for rank in range(2):
        loader = Loader(table, crops, backend=backend, seed=5, global_batch=8, rank=rank, world_size=2)
        of_steps = []
        for batch in loader:
            expected = draw(crops, 5, 0, batch.rows, np.full(4, 256), np.full(4, 256)).window
            groups = [windows_seen(crops, group).reshape(2, 4, 4) for group in batch.crops]
            windows = np.concatenate(groups).swapaxes(0, 1)  # (images, views, 4), as drawn
            np.testing.assert_allclose(windows, expected, atol=3.0)  # pixels are whole levels
            of_steps.append(windows)
        loader.close()
        seen.append(np.stack(of_steps))
    assert seen[0].shape == (3, 4, 4, 4)
    assert not np.isclose(seen[0], seen[1], atol=5.0).all(axis=-1).any()


@BOTH
def test_evaluation_crops_come_in_the_order_of_the_rows(tmp_path, backend):
    colors = flat_colors(11)
    table = open_dataset(write_folder(tmp_path / "images", colors), tmp_path / "tables", workers=1, progress=False)
    crops = SWAV.for_evaluation(32, 0.875)
    rows = table.usable()[::-1]
    batches = list(evaluation_batches(table, rows, crops, backend=backend, batch_size=4))
    assert [len(batch.rows) for batch in batches] == [4, 4, 3]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == rows.tolist()
    reader = Reader(table)
    for batch in batches:
        for crop, row in zip(batch.crops[0], batch.rows, strict=True):
            color = (crop[:, 16, 16] * torch.tensor(crops.std) + torch.tensor(crops.mean)) * 255
            np.testing.assert_allclose(color.numpy(), reader.decode(row)[0, 0], atol=1.0)
